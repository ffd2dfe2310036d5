/* Frames of the 82576 and lists of them (igb.h). */
#include <string.h>

#include "alloc.h"
#include "igb.h"

struct igb_frame *igb_frame_new(uint32_t length) {
  uint32_t padded = length < IGB_SHORTEST ? IGB_SHORTEST : length;
  struct igb_frame *frame = alloc_zeroed(sizeof *frame + IGB_TAG + padded + IGB_FCS);
  if (frame) {
    frame->data = frame->room + IGB_TAG;
    frame->length = length;
  }
  return frame;
}

struct igb_frame *igb_frame_copy(const struct igb_frame *frame) {
  struct igb_frame *copy = igb_frame_new(frame->length);
  if (copy)
    memcpy(copy->data, frame->data, frame->length);
  return copy;
}

void igb_frame_free(struct igb_frame *frame) { alloc_free(frame); }

/* What lies behind the data is not always zeros: a checksum may have been cut off there. */
void igb_frame_pad(struct igb_frame *frame) {
  if (frame->length >= IGB_SHORTEST)
    return;
  memset(frame->data + frame->length, 0, IGB_SHORTEST - frame->length);
  frame->length = IGB_SHORTEST;
}

/* Behind the two addresses, or at the end of what is shorter. */
void igb_frame_insert_tag(struct igb_frame *frame, uint16_t ethertype, uint16_t tag) {
  uint32_t at = frame->length < 12 ? frame->length : 12;
  frame->data -= IGB_TAG;
  memmove(frame->data, frame->data + IGB_TAG, at);
  igb_put16(frame->data + at, ethertype);
  igb_put16(frame->data + at + 2, tag);
  frame->length += IGB_TAG;
}

void igb_frame_strip_tag(struct igb_frame *frame) {
  memmove(frame->data + IGB_TAG, frame->data, 12);
  frame->data += IGB_TAG;
  frame->length -= IGB_TAG;
}

static uint32_t crc_table[256];

__attribute__((constructor)) static void make_crc_table(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; bit++)
      crc = crc & 1 ? crc >> 1 ^ 0xedb88320 : crc >> 1;
    crc_table[i] = crc;
  }
}

uint32_t igb_crc32(const uint8_t *data, size_t length) {
  uint32_t crc = UINT32_MAX;
  for (size_t i = 0; i < length; i++)
    crc = crc >> 8 ^ crc_table[(crc ^ data[i]) & 0xff];
  return ~crc;
}

void igb_frame_append_fcs(struct igb_frame *frame) {
  uint32_t crc = igb_crc32(frame->data, frame->length);
  for (unsigned i = 0; i < IGB_FCS; i++)
    frame->data[frame->length + i] = (uint8_t)(crc >> 8 * i);
  frame->length += IGB_FCS;
}

/* ---- lists ------------------------------------------------------------------------------------ */

void igb_frames_add(struct igb_frames *frames, struct igb_frame *frame) {
  frame->next = NULL;
  if (frames->last)
    frames->last->next = frame;
  else
    frames->first = frame;
  frames->last = frame;
  frames->n++;
  frames->n_bytes += frame->length;
}

void igb_frames_join(struct igb_frames *frames, struct igb_frames *more) {
  if (!more->first)
    return;
  if (frames->last)
    frames->last->next = more->first;
  else
    frames->first = more->first;
  frames->last = more->last;
  frames->n += more->n;
  frames->n_bytes += more->n_bytes;
  *more = (struct igb_frames){0};
}

struct igb_frame *igb_frames_pop(struct igb_frames *frames) {
  struct igb_frame *frame = frames->first;
  if (!frame)
    return NULL;
  frames->first = frame->next;
  if (!frames->first)
    frames->last = NULL;
  frames->n--;
  frames->n_bytes -= frame->length;
  return frame;
}

void igb_frames_free(struct igb_frames *frames) {
  struct igb_frame *frame;
  while ((frame = igb_frames_pop(frames)))
    igb_frame_free(frame);
}
