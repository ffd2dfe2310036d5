/* Headers of a frame, as far as an 82576 looks at them: types, checksums, the hash of RSS (igb.h). */
#include <string.h>

#include "igb.h"

#define TYPE_VLAN 0x8100
#define TYPE_IPV4 0x0800
#define TYPE_IPV6 0x86dd

enum { HOP_BY_HOP = 0, TCP = 6, UDP = 17, ROUTING = 43, OPTIONS = 60, SCTP = 132 };

uint16_t igb_get16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }

void igb_put16(uint8_t *at, uint32_t value) {
  at[0] = (uint8_t)(value >> 8);
  at[1] = (uint8_t)value;
}

static uint32_t fold(uint64_t sum) {
  while (sum >> 16)
    sum = (sum & 0xffff) + (sum >> 16);
  return (uint32_t)sum;
}

uint32_t igb_sum(const uint8_t *data, size_t length) {
  uint64_t sum = 0;
  uint32_t word;
  size_t at = 0;
  /* The sum of words with their bytes swapped is the sum with its bytes swapped (RFC 1071). */
  for (; at + 4 <= length; at += 4) {
    memcpy(&word, data + at, 4);
    sum += word;
  }
  word = 0;
  memcpy(&word, data + at, length - at);
  uint32_t folded = fold(sum + word);
  return (folded >> 8 | folded << 8) & 0xffff;
}

/* ---- types ------------------------------------------------------------------------------------ */

int igb_is_tagged(const uint8_t *data, uint32_t length) {
  return length >= 16 && igb_get16(data + 12) == TYPE_VLAN;
}

static void find_l4(struct igb_headers *headers, uint32_t l4, uint8_t protocol) {
  uint32_t smallest = protocol == TCP ? 20 : 8;
  uint32_t kind = protocol == TCP ? IGB_TCP : protocol == UDP ? IGB_UDP : protocol == SCTP ? IGB_SCTP : 0;
  if (!kind || headers->end - l4 < smallest)
    return;
  headers->kind |= kind;
  headers->l4 = l4;
  headers->protocol = protocol;
}

static struct igb_headers parse_v4(const uint8_t *data, uint32_t length, uint32_t at) {
  struct igb_headers headers = {.l3 = at, .addresses = at + 12, .n_addresses = 8};
  if (length < at + 20 || data[at] >> 4 != 4)
    return (struct igb_headers){0};
  uint32_t header = (data[at] & 15u) * 4, l4 = at + header;
  headers.end = at + igb_get16(data + at + 2);
  if (header < 20 || l4 > headers.end || headers.end > length)
    return (struct igb_headers){0};
  headers.kind = IGB_IPV4 | (header > 20 ? IGB_IPV4_OPTIONS : 0);
  if (!(igb_get16(data + at + 6) & 0x3fff)) /* else it is a fragment */
    find_l4(&headers, l4, data[at + 9]);
  return headers;
}

static int is_extension(uint8_t protocol) {
  return protocol == HOP_BY_HOP || protocol == ROUTING || protocol == OPTIONS;
}

static struct igb_headers parse_v6(const uint8_t *data, uint32_t length, uint32_t at) {
  struct igb_headers headers = {.kind = IGB_IPV6, .l3 = at, .addresses = at + 8, .n_addresses = 32};
  if (length < at + 40 || data[at] >> 4 != 6)
    return (struct igb_headers){0};
  uint8_t protocol = data[at + 6];
  uint32_t l4 = at + 40;
  headers.end = l4 + igb_get16(data + at + 4);
  if (headers.end > length)
    return (struct igb_headers){0};
  while (is_extension(protocol) && l4 + 8 <= headers.end) {
    headers.kind |= IGB_IPV6_EXTENSIONS;
    protocol = data[l4];
    l4 += 8 * (data[l4 + 1] + 1u);
  }
  if (l4 <= headers.end)
    find_l4(&headers, l4, protocol);
  return headers;
}

struct igb_headers igb_parse(const uint8_t *data, uint32_t length) {
  uint32_t at = igb_is_tagged(data, length) ? 18 : 14;
  if (length < at)
    return (struct igb_headers){0};
  uint16_t type = igb_get16(data + at - 2);
  if (type == TYPE_IPV4)
    return parse_v4(data, length, at);
  return type == TYPE_IPV6 ? parse_v6(data, length, at) : (struct igb_headers){0};
}

/* ---- checksums -------------------------------------------------------------------------------- */

static int is_zero(uint32_t sum) { return sum == 0 || sum == 0xffff; }

int igb_ip_sum_is_right(const uint8_t *data, const struct igb_headers *headers) {
  return is_zero(igb_sum(data + headers->l3, (data[headers->l3] & 15u) * 4));
}

int igb_l4_sum_is_right(const uint8_t *data, const struct igb_headers *headers) {
  if (!(headers->kind & (IGB_TCP | IGB_UDP)))
    return -1;
  if (headers->kind & IGB_UDP && !igb_get16(data + headers->l4 + 6))
    return -1;
  uint32_t length = headers->end - headers->l4;
  return is_zero(fold((uint64_t)igb_sum(data + headers->addresses, headers->n_addresses) +
                      headers->protocol + length + igb_sum(data + headers->l4, length)));
}

/* ---- RSS (7.1.1.7) ---------------------------------------------------------------------------- */

uint32_t igb_toeplitz(const uint8_t *key, const uint8_t *data, size_t length) {
  uint32_t hash = 0;
  uint64_t window = 0; /* the 32 bits of the key at this bit of the data, and those that follow */
  for (int i = 0; i < 8; i++)
    window = window << 8 | key[i];
  for (size_t i = 0; i < length; i++) {
    for (int bit = 7; bit >= 0; bit--, window <<= 1)
      if (data[i] >> bit & 1)
        hash ^= (uint32_t)(window >> 32);
    window |= i + 8 < 40 ? key[i + 8] : 0;
  }
  return hash;
}

/* Bits of MRQC that enable a type; what it needs; its number in a descriptor. */
static const struct {
  uint32_t enable, l3, l4, number;
} types[] = {{1u << 16, IGB_IPV4, IGB_TCP, 1},
             {1u << 22, IGB_IPV4, IGB_UDP, 7},
             {1u << 17, IGB_IPV4, 0, 2},
             {1u << 21 | 1u << 18, IGB_IPV6, IGB_TCP, 3},
             {1u << 23, IGB_IPV6, IGB_UDP, 8},
             {1u << 20 | 1u << 19, IGB_IPV6, 0, 5}};

uint32_t igb_rss(uint32_t mrqc, const uint8_t *key, const uint8_t *data,
                 const struct igb_headers *headers, uint32_t *hash) {
  uint8_t input[36];
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    uint32_t wanted = types[i].l3 | types[i].l4;
    if (!(mrqc & types[i].enable) || (headers->kind & wanted) != wanted)
      continue;
    size_t length = headers->n_addresses;
    memcpy(input, data + headers->addresses, length);
    if (types[i].l4) {
      memcpy(input + length, data + headers->l4, 4);
      length += 4;
    }
    *hash = igb_toeplitz(key, input, length);
    return types[i].number;
  }
  *hash = 0;
  return 0;
}
