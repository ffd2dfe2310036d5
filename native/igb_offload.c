/* What an 82576 does to a frame on its way out: checksums and segmentation (igb.h). */
#include <errno.h>
#include <string.h>

#include "igb.h"

#define SMALLEST_MSS 64u
#define TCP_FIN_PSH 0x09u
#define V6_HEADER 40u

struct igb_context igb_context_of(uint32_t low, uint32_t type, uint32_t lengths) {
  return (struct igb_context){.vlan = low >> 16,
                              .mac_length = low >> 9 & 0x7f,
                              .ip_length = low & 0x1ff,
                              .is_v4 = !!(type & 0x400),
                              .l4 = type >> 11 & 3,
                              .l4_length = lengths >> 8 & 0xff,
                              .mss = lengths >> 16};
}

/* What makes a sum right. */
static uint32_t complement(uint32_t sum) {
  sum %= 0xffff; /* adding with the carry wrapped around is arithmetic modulo 2^16 - 1 */
  return sum ? 0xffff - sum : 0;
}

/* If there is room for it. */
static void insert_ip(uint8_t *data, size_t length, size_t at, size_t header) {
  if (at + 12 > length)
    return;
  if (header > length - at)
    header = length - at;
  igb_put16(data + at + 10, 0);
  igb_put16(data + at + 10, complement(igb_sum(data + at, header)));
}

/* The field holds the sum of the pseudo header, all of it or less `extra`. */
static void insert_l4(uint8_t *data, size_t length, size_t at, uint32_t l4, uint32_t extra) {
  size_t field = at + (l4 == IGB_L4_TCP ? 16 : 6);
  if (l4 > IGB_L4_TCP || field + 2 > length)
    return;
  uint32_t value = complement(igb_sum(data + at, length - at) + extra);
  igb_put16(data + field, value || l4 == IGB_L4_TCP ? value : 0xffff);
}

void igb_insert_sum(uint8_t *data, size_t length, size_t start, size_t at) {
  if (start < length && at + 2 <= length)
    igb_put16(data + at, complement(igb_sum(data + start, length - start)));
}

void igb_insert_checksums(uint8_t *data, size_t length, const struct igb_context *context, int ip,
                          int l4) {
  if (ip && context->is_v4)
    insert_ip(data, length, context->mac_length, context->ip_length);
  if (l4)
    insert_l4(data, length, context->mac_length + context->ip_length, context->l4, 0);
}

/* ---- segmentation (7.2.4) --------------------------------------------------------------------- */

/* The n-th segment: its headers are those of the whole, its payload is there already. */
static void finish_segment(uint8_t *data, uint32_t length, const struct igb_context *context,
                           uint32_t n, int is_last, int ip, int l4) {
  size_t ip_at = context->mac_length, l4_at = ip_at + context->ip_length;
  uint32_t payload = length - (uint32_t)l4_at;
  if (context->is_v4) {
    igb_put16(data + ip_at + 2, context->ip_length + payload);
    igb_put16(data + ip_at + 4, igb_get16(data + ip_at + 4) + n);
    if (ip)
      insert_ip(data, length, ip_at, context->ip_length);
  } else
    igb_put16(data + ip_at + 4, context->ip_length - V6_HEADER + payload);
  if (context->l4 == IGB_L4_TCP) {
    uint32_t sequence = (uint32_t)igb_get16(data + l4_at + 4) << 16 | igb_get16(data + l4_at + 6);
    sequence += n * context->mss;
    igb_put16(data + l4_at + 4, sequence >> 16);
    igb_put16(data + l4_at + 6, sequence);
    if (!is_last)
      data[l4_at + 13] &= (uint8_t)~TCP_FIN_PSH;
  } else
    igb_put16(data + l4_at + 4, payload);
  if (l4)
    insert_l4(data, length, l4_at, context->l4, payload);
}

static int fits(const struct igb_context *context, size_t length) {
  uint32_t smallest = context->l4 == IGB_L4_TCP ? 18 : 8;
  return context->mac_length >= 12 && context->ip_length >= 20 && context->l4_length >= smallest &&
         context->mac_length + context->ip_length + context->l4_length <= length &&
         context->mss >= SMALLEST_MSS && context->l4 <= IGB_L4_TCP;
}

int igb_segment(const uint8_t *data, size_t length, const struct igb_context *context, int ip,
                int l4, struct igb_frames *out) {
  uint32_t start = context->mac_length + context->ip_length + context->l4_length, n = 0;
  if (!fits(context, length))
    return 0;
  for (size_t at = start; at < length; at += context->mss, n++) {
    uint32_t piece = length - at < context->mss ? (uint32_t)(length - at) : context->mss;
    struct igb_frame *frame = igb_frame_new(start + piece);
    if (!frame)
      return -ENOMEM;
    memcpy(frame->data, data, start);
    memcpy(frame->data + start, data + at, piece);
    finish_segment(frame->data, frame->length, context, n, at + piece == length, ip, l4);
    igb_frames_add(out, frame);
  }
  return 0;
}
