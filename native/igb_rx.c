/* A receive queue of an 82576: from frames to descriptors in client memory (igb.h; 7.1). */
#include <string.h>

#include "igb.h"

#define BATCH 64u /* descriptors used in one go */
#define DESCRIPTOR 16u
#define DROP_EN (1u << 31) /* of SRRCTL */

enum { DD = 1, EOP = 2 };

struct ring {
  uint64_t base;
  uint32_t head, size, free; /* free: descriptors that the client has put there */
  uint32_t buffer;           /* bytes of each */
  int is_legacy, drops;
};

static uint32_t get(struct igb_port *port, unsigned queue, uint32_t reg) {
  return igb_get(port, igb_rx_register(queue, reg));
}

static int is_stopped(const struct igb_port *port, unsigned queue) {
  return iommufs_ended(port->device) || port->rx_stopped >> queue & 1;
}

int igb_rx_is_enabled(struct igb_port *port, unsigned queue) {
  return !!(get(port, queue, IGB_DCTL) & IGB_QUEUE_ENABLE);
}

static struct ring ring_of(struct igb_port *port, unsigned queue) {
  static const uint32_t sizes[] = {2048, 1024, 512, 256}; /* by RCTL.BSIZE */
  struct ring ring = {0};
  iommufs_lock(port->device);
  uint32_t srrctl = get(port, queue, IGB_SRRCTL);
  uint32_t size = (get(port, queue, IGB_LEN) & 0xfff80) / DESCRIPTOR;
  uint32_t head = get(port, queue, IGB_HEAD), tail = get(port, queue, IGB_TAIL);
  ring.buffer = (srrctl & 0x7f) << 10;
  if (!ring.buffer)
    ring.buffer = sizes[igb_get(port, IGB_RCTL) >> 16 & 3];
  ring.is_legacy = !(srrctl >> 25 & 7);
  ring.drops = !!(srrctl & DROP_EN);
  if (igb_rx_is_enabled(port, queue) && head < size && tail < size) {
    ring.base = igb_descriptor(port, igb_rx_register(queue, IGB_BAL), 0);
    ring.head = head;
    ring.size = size;
    ring.free = (tail + size - head) % size;
  }
  iommufs_unlock(port->device);
  return ring;
}

uint64_t igb_rx_promised(struct igb_port *port, unsigned queue) {
  struct ring ring = ring_of(port, queue);
  return (uint64_t)ring.free * ring.buffer;
}

static void pop(struct igb_port *port, struct igb_rx *rx) {
  struct igb_frame *frame = igb_frames_pop(&rx->arrivals);
  port->backlog -= frame->length;
  igb_frame_free(frame);
}

void igb_rx_forget(struct igb_port *port, unsigned queue) {
  while (port->rx[queue].arrivals.first)
    pop(port, &port->rx[queue]);
}

/* What has no place in any number of descriptors, and what has none now and is not to wait. */
static void drop(struct igb_port *port, unsigned queue, const struct ring *ring) {
  struct igb_rx *rx = &port->rx[queue];
  uint64_t room = ring->size ? (uint64_t)ring->buffer * (ring->size - 1) : UINT64_MAX;
  for (; rx->arrivals.first && rx->arrivals.first->length > room; pop(port, rx))
    igb_count(port, IGB_ROC, 1);
  if (ring->free || !ring->drops || !rx->arrivals.first)
    return;
  igb_count(port, igb_rx_register(queue, IGB_DROPPED), rx->arrivals.n);
  igb_rx_forget(port, queue);
}

/* ---- descriptors ------------------------------------------------------------------------------ */

/* How many descriptors the first frames take, at most n; *n_frames: how many those are. */
static uint32_t count_needed(const struct igb_rx *rx, const struct ring *ring, uint32_t n,
                             uint32_t *n_frames) {
  uint32_t needed = 0;
  *n_frames = 0;
  for (const struct igb_frame *frame = rx->arrivals.first; frame; frame = frame->next) {
    uint32_t pieces = (frame->length + ring->buffer - 1) / ring->buffer;
    if (pieces > n - needed)
      break;
    needed += pieces;
    ++*n_frames;
  }
  return needed;
}

/* Descriptors from the head on, which may go round the end of the ring. */
static int read_ring(struct igb_port *port, const struct ring *ring, uint8_t *to, uint32_t n) {
  uint32_t first = n < ring->size - ring->head ? n : ring->size - ring->head;
  int err = iommufs_dma_read(port->device, ring->base + (uint64_t)DESCRIPTOR * ring->head, to,
                             DESCRIPTOR * first);
  if (!err && n > first)
    err = iommufs_dma_read(port->device, ring->base, to + DESCRIPTOR * first,
                           DESCRIPTOR * (n - first));
  return err;
}

static void write_ring(struct igb_port *port, const struct ring *ring, const uint8_t *from,
                       uint32_t n) {
  uint32_t first = n < ring->size - ring->head ? n : ring->size - ring->head;
  iommufs_dma_write(port->device, ring->base + (uint64_t)DESCRIPTOR * ring->head, from,
                    DESCRIPTOR * first);
  if (n > first)
    iommufs_dma_write(port->device, ring->base, from + DESCRIPTOR * first,
                      DESCRIPTOR * (n - first));
}

/* What is written back: of a legacy one the buffer's address stays (7.1.4, 7.1.5.2). */
static void fill(uint8_t *descriptor, const struct ring *ring, const struct igb_frame *frame,
                 uint32_t length, uint32_t status) {
  struct {
    uint32_t kind, rss, status;
    uint16_t length, vlan;
  } advanced = {frame->kind, frame->rss, status, (uint16_t)length, frame->vlan};
  struct {
    uint16_t length, checksum;
    uint8_t status, errors;
    uint16_t vlan;
  } legacy = {(uint16_t)length, 0, (uint8_t)status, (uint8_t)(status >> 24), frame->vlan};
  if (ring->is_legacy)
    memcpy(descriptor + 8, &legacy, sizeof legacy);
  else
    memcpy(descriptor, &advanced, sizeof advanced);
}

/* The data of a frame goes to memory; its descriptors are filled, and the next one returned. */
static uint8_t *write_frame(struct igb_port *port, const struct ring *ring,
                            const struct igb_frame *frame, uint8_t *descriptor) {
  for (uint32_t at = 0; at < frame->length; at += ring->buffer, descriptor += DESCRIPTOR) {
    uint32_t left = frame->length - at, length = left < ring->buffer ? left : ring->buffer;
    uint64_t address;
    memcpy(&address, descriptor, sizeof address);
    iommufs_dma_write(port->device, address, frame->data + at, length);
    fill(descriptor, ring, frame, length, frame->status | DD | (length == left ? EOP : 0));
  }
  return descriptor;
}

static int publish_head(struct igb_port *port, unsigned queue, uint32_t head) {
  iommufs_lock(port->device);
  int stopped = is_stopped(port, queue);
  if (!stopped)
    igb_put(port, igb_rx_register(queue, IGB_HEAD), head);
  igb_irq_arrived(port, queue);
  iommufs_unlock(port->device);
  return !stopped;
}

int igb_rx_put(struct igb_port *port, unsigned queue) {
  uint8_t descriptors[BATCH * DESCRIPTOR], *next = descriptors;
  struct igb_rx *rx = &port->rx[queue];
  struct ring ring = ring_of(port, queue);
  uint32_t n_frames, n;
  drop(port, queue, &ring);
  if (!rx->arrivals.first || !ring.free)
    return 0;
  n = count_needed(rx, &ring, ring.free < BATCH ? ring.free : BATCH, &n_frames);
  if (!n) {
    igb_count(port, IGB_RNBC, 1);
    return 0;
  }
  if (read_ring(port, &ring, descriptors, n))
    return 0;
  const struct igb_frame *frame = rx->arrivals.first;
  for (uint32_t i = 0; i < n_frames && !is_stopped(port, queue); i++, frame = frame->next)
    next = write_frame(port, &ring, frame, next);
  iommufs_lock(port->device); /* the cause is there before the client sees the descriptor */
  igb_irq_arriving(port, queue);
  iommufs_unlock(port->device);
  if (!is_stopped(port, queue))
    write_ring(port, &ring, descriptors, n);
  if (!publish_head(port, queue, (ring.head + n) % ring.size))
    return 0;
  for (uint32_t i = 0; i < n_frames; i++)
    pop(port, rx);
  return 1;
}
