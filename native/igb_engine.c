/*
 * The engine of an 82576: moves frames between the queues and the wire while there are any (igb.h).
 *
 * Each poll gives every queue that has something one batch, transmission first. What a reset or the
 * disabling of a queue makes of one that is under way: write() sets its bit in tx_stopped or rx_stopped,
 * the queue notices before its next DMA, and it forgets all before it begins anew.
 */
#include <errno.h>
#include <string.h>

#include "igb.h"

#define REPLAY_BYTES 8192u /* in one go, and a frame more */

static uint32_t take_bits(_Atomic uint32_t *bits) {
  return *bits ? __atomic_exchange_n((uint32_t *)bits, 0, __ATOMIC_ACQ_REL) : 0;
}

static void report(struct igb_port *port, const char *what, const char *why, const char *where) {
  char text[128];
  snprintf(text, sizeof text, "%s: %s: %s", what, why, where);
  iommufs_report(port->device, text);
}

/* One record for all clients. */
static void open_record(struct igb_port *port) {
  struct igb *igb = port->igb;
  if (!igb->pcap_out)
    return;
  port->record = igb_record_open(igb->pcap_out, !igb->recorded);
  if (port->record)
    igb->recorded = 1;
  else if (!igb->is_record_lost)
    report(port, "cannot record", strerror(errno), igb->pcap_out);
  igb->is_record_lost = !port->record;
}

static void record(struct igb_port *port, const struct igb_frames *frames) {
  int err = igb_record_write(port->record, frames);
  if (!err)
    return;
  report(port, "the record ends", strerror(-err), port->igb->pcap_out);
  fclose(port->record);
  port->record = NULL;
}

static void send(struct igb_port *port, struct igb_frames *frames) {
  for (const struct igb_frame *frame = frames->first; frame; frame = frame->next) {
    igb_tally(port, IGB_TPT);
    igb_tally(port, IGB_GPTC);
    port->counts.sent += frame->length + IGB_FCS;
    igb_count_frame(port, frame, IGB_PTC64, IGB_BPTC, IGB_MPTC);
  }
  if (port->record && frames->first)
    record(port, frames);
  if (port->looped) {
    igb_hear(port, frames);
    return;
  }
  if (port->igb->tap)
    igb_tap_send(port->igb->tap, frames);
  igb_wire_send(&port->igb->end, frames);
}

/* The queues of which a report was asked for, a bit each; *busy: there was something to do. */
static uint32_t transmit(struct igb_port *port, int *busy) {
  uint32_t due = take_bits(&port->tx_due), reported = 0;
  for (unsigned queue = 0; due >> queue; queue++) {
    struct igb_frames frames = {0};
    int has_report = 0;
    if (!(due >> queue & 1))
      continue;
    if (!port->looped && !igb_wire_has_room(&port->igb->end)) {
      port->tx_due |= 1u << queue; /* it is looked at again when there is, or after a while */
      continue;
    }
    if (!igb_tx_take(port, queue, &frames, &has_report))
      continue;
    *busy = 1;
    port->tx_due |= 1u << queue;
    reported |= (uint32_t)has_report << queue;
    send(port, &frames);
  }
  return reported;
}

/* What has come over the wire. */
static void hear(struct igb_port *port) {
  struct igb_frames frames = {0};
  uint64_t missed = igb_wire_take(&port->igb->end, port, &frames);
  igb_hear(port, &frames);
  port->counts.n[(IGB_MPC - IGB_STATISTICS) / 4] += (uint32_t)missed;
}

/* Whether the next frames of the file are to come: all that came before has gone to memory, and there
 * is memory for more. */
static int wants_more(struct igb_port *port) {
  if (!port->igb->end.listening || port->looped || port->backlog ||
      !(igb_get(port, IGB_STATUS) & IGB_STATUS_LU))
    return 0;
  for (unsigned queue = 0; queue < IGB_N_QUEUES; queue++)
    if (igb_rx_promised(port, queue))
      return 1;
  return 0;
}

/* A few frames of the file; 0: none. */
static int replay(struct igb_port *port) {
  const char *path = port->igb->pcap_in, *why = NULL;
  struct igb_frames frames = {0};
  struct igb_frame *frame;
  if (path && __atomic_exchange_n((int *)&port->rewind, 0, __ATOMIC_ACQ_REL)) {
    igb_replay_close(port->replay);
    port->replay = igb_replay_open(path, &why);
  }
  if (port->replay && wants_more(port)) {
    while (frames.n_bytes < REPLAY_BYTES && (frame = igb_replay_next(port->replay, &why)))
      igb_frames_add(&frames, frame);
    if (frames.n_bytes < REPLAY_BYTES) {
      igb_replay_close(port->replay);
      port->replay = NULL;
    }
  }
  if (why)
    report(port, "no more frames", why, path);
  int any = frames.n != 0;
  igb_hear(port, &frames);
  return any;
}

/* The queues that were written to, a bit each. */
static uint32_t receive(struct igb_port *port) {
  uint32_t due = take_bits(&port->rx_due), written = 0;
  for (unsigned queue = 0; due >> queue; queue++)
    if (due >> queue & 1 && igb_rx_put(port, queue)) {
      port->rx_due |= 1u << queue;
      written |= 1u << queue;
    }
  return written;
}

static void forget(struct igb_port *port) {
  uint32_t tx = take_bits(&port->tx_stopped), rx = take_bits(&port->rx_stopped);
  for (unsigned queue = 0; queue < IGB_N_QUEUES; queue++) {
    if (tx >> queue & 1)
      igb_tx_forget(&port->tx[queue]);
    if (rx >> queue & 1)
      igb_rx_forget(port, queue);
  }
}

static void begin(struct igb_port *port) {
  struct igb *igb = port->igb;
  igb_wire_attend(&igb->end, port, port->device);
  open_record(port);
  int err = igb->tap ? igb_tap_start(igb->tap) : 0;
  if (err)
    report(port, "nothing comes from the tap interface", strerror(-err), "no thread");
  port->attends = 1;
}

int igb_engine_poll(struct igb_port *port) {
  struct igb_end *end = &port->igb->end;
  int busy = 0;
  if (!port->attends)
    begin(port);
  forget(port);
  if (end->has_news) {
    iommufs_lock(port->device);
    igb_update_link(port);
    iommufs_unlock(port->device);
  }
  uint32_t sent = transmit(port, &busy), received;
  if (end->has_mail) {
    hear(port);
    busy = 1;
  }
  busy |= replay(port);
  int missed = port->counts.n[(IGB_MPC - IGB_STATISTICS) / 4] != 0;
  if (busy)
    igb_counts_publish(port);
  received = receive(port);
  if (sent || received || missed) {
    iommufs_lock(port->device);
    if (missed)
      igb_irq_cause(port, IGB_RXO);
    if (sent || received)
      igb_irq_queues(port, received, sent);
    iommufs_unlock(port->device);
  }
  igb_wire_wake_others(end);
  return busy || received;
}
