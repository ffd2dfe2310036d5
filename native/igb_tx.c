/*
 * A transmit queue of an 82576: from descriptors in client memory to frames (igb.h; 7.2).
 *
 * The data of a packet is read as its descriptors come. Of a packet of which a piece is refused, or which
 * is too long, nothing is sent; its descriptors are written back all the same.
 */
#include <string.h>

#include "alloc.h"
#include "igb.h"

#define BATCH 64u /* descriptors taken in one go */
#define MOST_BYTES (64u << 10) /* of frames; a packet that is there already may go beyond */
#define DESCRIPTOR 16u
#define LONGEST_TSO ((1u << 18) + 512) /* bytes to be segmented, with their headers */

/* The command byte of a descriptor, which is the same in all formats but for IC. */
enum { EOP = 0x01, IFCS = 0x02, IC = 0x04, RS = 0x08, DEXT = 0x20, VLE = 0x40, TSE = 0x80 };
enum { CONTEXT = 2 }; /* a type of advanced descriptors */
enum { IXSM = 1, TXSM = 2 };
enum { DD = 1 };

struct descriptor {
  uint64_t address;
  uint32_t low, high;
};

/* Words of descriptors to be written back. */
struct reports {
  uint32_t n;
  struct {
    uint64_t iova;
    uint32_t status;
  } word[BATCH];
};

static uint32_t get(struct igb_port *port, unsigned queue, uint32_t reg) {
  return igb_get(port, igb_tx_register(queue, reg));
}

static int is_stopped(const struct igb_port *port, unsigned queue) {
  return iommufs_ended(port->device) || port->tx_stopped >> queue & 1;
}

void igb_tx_forget(struct igb_tx *tx) {
  alloc_free(tx->data);
  *tx = (struct igb_tx){0};
}

/* ---- a packet --------------------------------------------------------------------------------- */

static void begin_next(struct igb_tx *tx) {
  tx->length = 0;
  tx->command = tx->options = 0;
  tx->context = (struct igb_context){0};
  tx->begun = tx->is_lost = 0;
}

/* Room for so many bytes; at least as much again as there was. */
static int reserve(struct igb_tx *tx, size_t length) {
  size_t capacity = 2 * tx->capacity > length ? 2 * tx->capacity : length;
  if (length <= tx->capacity)
    return 1;
  uint8_t *data = alloc_zeroed(capacity);
  if (!data)
    return 0;
  if (tx->length)
    memcpy(data, tx->data, tx->length);
  alloc_free(tx->data);
  tx->data = data;
  tx->capacity = capacity;
  return 1;
}

static void add(struct igb_port *port, struct igb_tx *tx, uint64_t address, uint32_t length) {
  if (tx->is_lost || !length)
    return;
  if (length > LONGEST_TSO - tx->length || !reserve(tx, tx->length + length) ||
      iommufs_dma_read(port->device, address, tx->data + tx->length, length))
    tx->is_lost = 1;
  else
    tx->length += length;
}

/* The FCS is the client's; a frame whose FCS is wrong reaches nobody. */
static int take_fcs(struct igb_tx *tx) {
  uint32_t fcs = 0;
  if (tx->length < IGB_FCS)
    return 0;
  tx->length -= IGB_FCS;
  for (unsigned i = 0; i < IGB_FCS; i++)
    fcs |= (uint32_t)tx->data[tx->length + i] << 8 * i;
  return fcs == igb_crc32(tx->data, tx->length);
}

/* What the port makes of each frame that leaves. */
static void finish_frame(struct igb_port *port, struct igb_frame *frame, int tag, uint16_t vlan) {
  if (tag)
    igb_frame_insert_tag(frame, (uint16_t)igb_get(port, IGB_VET), vlan);
  if (igb_get(port, IGB_TCTL) & IGB_TCTL_PSP)
    igb_frame_pad(frame);
}

static struct igb_frame *frame_of(const struct igb_tx *tx) {
  struct igb_frame *frame = igb_frame_new((uint32_t)tx->length);
  if (frame)
    memcpy(frame->data, tx->data, tx->length);
  return frame;
}

static void end_advanced(struct igb_port *port, struct igb_tx *tx, struct igb_frames *out) {
  struct igb_frames made = {0};
  struct igb_frame *frame;
  int ip = !!(tx->options & IXSM), l4 = !!(tx->options & TXSM);
  if (tx->command & TSE) {
    igb_segment(tx->data, tx->length, &tx->context, ip, l4, &made);
    igb_tally(port, IGB_TSCTC);
  } else if (tx->length <= IGB_LONGEST && (tx->command & IFCS || take_fcs(tx)) &&
             (frame = frame_of(tx))) {
    igb_insert_checksums(frame->data, frame->length, &tx->context, ip, l4);
    igb_frames_add(&made, frame);
  }
  while ((frame = igb_frames_pop(&made))) {
    finish_frame(port, frame, tx->command & VLE, (uint16_t)tx->context.vlan);
    igb_frames_add(out, frame);
  }
}

static void advanced(struct igb_port *port, struct igb_tx *tx, const struct descriptor *descriptor,
                     struct igb_frames *out) {
  uint32_t command = descriptor->low >> 24;
  if (!tx->begun) {
    tx->command = command & (VLE | TSE);
    tx->options = descriptor->high >> 8 & (IXSM | TXSM);
    tx->context = tx->contexts[descriptor->high >> 4 & 1];
    tx->begun = (descriptor->low & 0xffff) != 0;
  }
  add(port, tx, descriptor->address, descriptor->low & 0xffff);
  if (!(command & EOP))
    return;
  tx->command |= command;
  if (!tx->is_lost && tx->length)
    end_advanced(port, tx, out);
  begin_next(tx);
}

static void legacy(struct igb_port *port, struct igb_tx *tx, const struct descriptor *descriptor,
                   struct igb_frames *out) {
  uint32_t command = descriptor->low >> 24;
  struct igb_frame *frame;
  tx->begun |= (descriptor->low & 0xffff) != 0;
  add(port, tx, descriptor->address, descriptor->low & 0xffff);
  if (!(command & EOP))
    return;
  if (!tx->is_lost && tx->length && tx->length <= IGB_LONGEST &&
      (command & IFCS || take_fcs(tx)) && (frame = frame_of(tx))) {
    if (command & IC)
      igb_insert_sum(frame->data, frame->length, descriptor->high >> 8 & 0xff,
                     descriptor->low >> 16 & 0xff);
    finish_frame(port, frame, command & VLE, (uint16_t)(descriptor->high >> 16));
    igb_frames_add(out, frame);
  }
  begin_next(tx);
}

/* ---- a packet in one descriptor, which most are ----------------------------------------------- */

static int is_simple(const struct igb_tx *tx, const struct descriptor *descriptor) {
  const uint32_t mask = (uint32_t)(EOP | IFCS | DEXT | VLE | TSE) << 24 | 0xfu << 20;
  const uint32_t wanted = (uint32_t)(EOP | IFCS | DEXT) << 24 | 3u << 20;
  uint32_t length = descriptor->low & 0xffff;
  return !tx->begun && (descriptor->low & mask) == wanted &&
         !(descriptor->high >> 8 & (IXSM | TXSM)) && length && length <= IGB_LONGEST;
}

static void simple(struct igb_port *port, const struct descriptor *descriptor,
                   struct igb_frames *out) {
  struct igb_frame *frame = igb_frame_new(descriptor->low & 0xffff);
  if (!frame)
    return;
  if (iommufs_dma_read(port->device, descriptor->address, frame->data, frame->length)) {
    igb_frame_free(frame);
    return;
  }
  finish_frame(port, frame, 0, 0);
  igb_frames_add(out, frame);
}

/* ---- the ring --------------------------------------------------------------------------------- */

struct ring {
  uint64_t base, write_back;
  uint32_t head, size, waiting; /* descriptors; waiting: 0 while the queue is disabled */
};

static struct ring ring_of(struct igb_port *port, unsigned queue) {
  struct ring ring = {0};
  iommufs_lock(port->device);
  uint32_t size = (get(port, queue, IGB_LEN) & 0xfff80) / DESCRIPTOR;
  uint32_t head = get(port, queue, IGB_HEAD), tail = get(port, queue, IGB_TAIL);
  int enabled = igb_get(port, IGB_TCTL) & IGB_TCTL_EN && get(port, queue, IGB_DCTL) & IGB_QUEUE_ENABLE;
  if (enabled && head < size && tail < size)
    ring = (struct ring){.base = igb_descriptor(port, igb_tx_register(queue, IGB_BAL), head),
                         .write_back = igb_get64(port, igb_tx_register(queue, IGB_WBAL)),
                         .head = head,
                         .size = size,
                         .waiting = (tail + size - head) % size};
  iommufs_unlock(port->device);
  return ring;
}

static uint32_t smallest(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t least = a < b ? a : b;
  return least < c ? least : c;
}

static void carry_out(struct igb_port *port, struct igb_tx *tx, const struct descriptor *descriptor,
                      struct igb_frames *out) {
  if (is_simple(tx, descriptor))
    simple(port, descriptor, out);
  else if (!(descriptor->low >> 24 & DEXT))
    legacy(port, tx, descriptor, out);
  else if ((descriptor->low >> 20 & 0xf) == CONTEXT)
    tx->contexts[descriptor->high >> 4 & 1] =
        igb_context_of((uint32_t)descriptor->address, descriptor->low, descriptor->high);
  else
    advanced(port, tx, descriptor, out);
}

static void note_report(struct reports *reports, uint64_t iova, const struct descriptor *descriptor) {
  uint32_t command = descriptor->low >> 24;
  if (!(command & RS))
    return;
  reports->word[reports->n].iova = iova + 12;
  reports->word[reports->n++].status = command & DEXT ? DD : descriptor->high | DD;
}

/* Into the descriptors, or where the head is wanted instead. */
static void write_reports(struct igb_port *port, const struct ring *ring,
                          const struct reports *reports, uint32_t head) {
  if (ring->write_back & 1 && reports->n)
    iommufs_dma_write(port->device, ring->write_back & ~3ull, &head, 4);
  for (uint32_t i = 0; i < reports->n && !(ring->write_back & 1); i++)
    iommufs_dma_write(port->device, reports->word[i].iova, &reports->word[i].status, 4);
}

static int publish_head(struct igb_port *port, unsigned queue, uint32_t head) {
  iommufs_lock(port->device);
  int stopped = is_stopped(port, queue);
  if (!stopped)
    igb_put(port, igb_tx_register(queue, IGB_HEAD), head);
  iommufs_unlock(port->device);
  return !stopped;
}

int igb_tx_take(struct igb_port *port, unsigned queue, struct igb_frames *out, int *reported) {
  struct descriptor descriptors[BATCH];
  struct reports reports = {0};
  struct ring ring = ring_of(port, queue);
  uint32_t n = smallest(ring.waiting, ring.size - ring.head, BATCH), i = 0;
  if (!n || iommufs_dma_read(port->device, ring.base, descriptors, n * DESCRIPTOR))
    return 0;
  for (; i < n && out->n_bytes < MOST_BYTES && !is_stopped(port, queue); i++) {
    carry_out(port, &port->tx[queue], &descriptors[i], out);
    note_report(&reports, ring.base + DESCRIPTOR * i, &descriptors[i]);
  }
  uint32_t head = (ring.head + i) % ring.size;
  if (!is_stopped(port, queue))
    write_reports(port, &ring, &reports, head);
  if (publish_head(port, queue, head)) {
    *reported = reports.n != 0;
    return 1;
  }
  igb_frames_free(out);
  return 0;
}
