/*
 * Wires between functions (igb.h): all whose topology names the same one hear each other. A frame on a
 * wire has no FCS: it is right by construction.
 *
 * What is sent lies in the inbox of the other end until that end's thread takes it. A sender whose
 * frames find no room waits, as on a wire with flow control, and is woken when there is; unless
 * nobody has taken anything for a while, because the other thread is stuck in memory of its client:
 * then frames are lost. So nobody waits for anybody but for a moment.
 *
 * One mutex for all wires. Waking a device takes its lock, which comes before that mutex, and so
 * happens without it; n_wakers keeps the device meanwhile.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "igb.h"

/* An inbox with so much in it has no room. What was under way then still comes. */
#define INBOX_BYTES (512u << 10)
#define INBOX_FRAMES 1024u
/* An inbox that was full for so long is that of somebody who is stuck. */
#define PATIENCE_NS 100000000ull

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;
static struct igb_end *ends;

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int is_other(const struct igb_end *end, const struct igb_end *other) {
  return other != end && end->name && other->name && !strcmp(end->name, other->name);
}

/* ---- ends ------------------------------------------------------------------------------------- */

static void tell_others(struct igb_end *end) {
  end->owes_wakes = 1;
  for (struct igb_end *other = ends; other; other = other->next)
    if (is_other(end, other)) {
      other->has_news = 1;
      other->to_be_woken = 1;
    }
}

static void set_power(struct igb_end *end, int on) {
  if (end->powered != on)
    tell_others(end);
  end->powered = on;
}

static void wait_for_wakers(struct igb_end *end) {
  while (end->n_wakers)
    pthread_cond_wait(&woken, &lock);
}

static void empty(struct igb_end *end) {
  igb_frames_free(&end->inbox);
  end->n_missed = 0;
  end->full_ns = 0;
  end->has_mail = 0;
}

void igb_wire_join(struct igb_end *end, const char *name, int is_plugged) {
  pthread_mutex_lock(&lock);
  *end = (struct igb_end){.name = name, .is_plugged = is_plugged, .next = ends};
  for (const struct igb_end *other = ends; other; other = other->next)
    end->index += (unsigned)is_other(end, other);
  ends = end;
  set_power(end, 1);
  pthread_mutex_unlock(&lock);
  igb_wire_wake_others(end);
}

void igb_wire_leave(struct igb_end *end) {
  struct igb_end **at = &ends;
  pthread_mutex_lock(&lock);
  set_power(end, 0);
  pthread_mutex_unlock(&lock);
  igb_wire_wake_others(end);
  pthread_mutex_lock(&lock);
  wait_for_wakers(end);
  while (*at != end)
    at = &(*at)->next;
  *at = end->next;
  empty(end);
  pthread_mutex_unlock(&lock);
}

void igb_wire_open(struct igb_end *end, const struct igb_port *owner) {
  pthread_mutex_lock(&lock);
  end->owner = owner;
  end->device = NULL;
  end->listening = 0;
  empty(end);
  set_power(end, 1);
  pthread_mutex_unlock(&lock);
}

void igb_wire_close(struct igb_end *end, const struct igb_port *owner, int attended) {
  pthread_mutex_lock(&lock);
  if (end->owner == owner) { /* else a new life has begun */
    end->owner = NULL;
    end->device = NULL;
    end->listening = 0;
    empty(end);
    set_power(end, 1);
  }
  if (attended)
    wait_for_wakers(end);
  pthread_mutex_unlock(&lock);
  if (attended)
    igb_wire_wake_others(end);
}

void igb_wire_attend(struct igb_end *end, const struct igb_port *owner,
                     struct iommufs_device *device) {
  pthread_mutex_lock(&lock);
  if (end->owner == owner)
    end->device = device;
  pthread_mutex_unlock(&lock);
}

void igb_wire_listen(struct igb_end *end, const struct igb_port *owner, int on) {
  pthread_mutex_lock(&lock);
  if (end->owner == owner)
    end->listening = on;
  pthread_mutex_unlock(&lock);
}

void igb_wire_power(struct igb_end *end, const struct igb_port *owner, int on) {
  pthread_mutex_lock(&lock);
  if (end->owner == owner)
    set_power(end, on);
  pthread_mutex_unlock(&lock);
}

int igb_wire_is_plugged(const struct igb_end *end) {
  int plugged = end->is_plugged;
  pthread_mutex_lock(&lock);
  for (const struct igb_end *other = ends; other; other = other->next)
    plugged |= is_other(end, other) && other->powered;
  pthread_mutex_unlock(&lock);
  return plugged;
}

/* ---- waking ----------------------------------------------------------------------------------- */

static struct igb_end *next_to_wake(const struct igb_end *end) {
  for (struct igb_end *other = ends; other; other = other->next)
    if (is_other(end, other) && other->to_be_woken)
      return other;
  return NULL;
}

/* The lock is given away meanwhile. */
static void wake(struct igb_end *end) {
  struct iommufs_device *device = end->device;
  end->to_be_woken = 0;
  if (!device)
    return;
  end->n_wakers++;
  pthread_mutex_unlock(&lock);
  iommufs_wake(device);
  pthread_mutex_lock(&lock);
  if (!--end->n_wakers)
    pthread_cond_broadcast(&woken);
}

/* ---- frames ----------------------------------------------------------------------------------- */

void igb_wire_clear(struct igb_end *end, const struct igb_port *owner) {
  pthread_mutex_lock(&lock);
  if (end->owner == owner)
    empty(end);
  pthread_mutex_unlock(&lock);
}

static int is_full(const struct igb_end *end) {
  return end->inbox.n >= INBOX_FRAMES || end->inbox.n_bytes >= INBOX_BYTES;
}

static int is_stuck(const struct igb_end *end) {
  return end->full_ns && now_ns() - end->full_ns > PATIENCE_NS;
}

int igb_wire_has_room(struct igb_end *end) {
  int room = 1;
  pthread_mutex_lock(&lock);
  for (struct igb_end *other = ends; other; other = other->next)
    if (is_other(end, other) && other->listening && is_full(other) && !is_stuck(other)) {
      other->awaited = 1;
      room = 0;
    }
  pthread_mutex_unlock(&lock);
  return room;
}

static void deliver(struct igb_end *other, struct igb_frame *frame) {
  if (frame && !is_stuck(other)) {
    igb_frames_add(&other->inbox, frame);
    if (is_full(other) && !other->full_ns)
      other->full_ns = now_ns();
  } else {
    other->n_missed++;
    igb_frame_free(frame);
  }
  other->has_mail = 1;
  other->to_be_woken = 1;
}

void igb_wire_send(struct igb_end *end, struct igb_frames *frames) {
  struct igb_frame *frame;
  struct igb_end *last = NULL; /* who listens: this one gets the frames, others get copies */
  pthread_mutex_lock(&lock);
  for (struct igb_end *other = ends; other; other = other->next)
    if (is_other(end, other) && other->listening)
      last = other;
  while (last && (frame = igb_frames_pop(frames))) {
    for (struct igb_end *other = ends; other != last; other = other->next)
      if (is_other(end, other) && other->listening)
        deliver(other, igb_frame_copy(frame));
    deliver(last, frame);
    end->owes_wakes = 1;
  }
  pthread_mutex_unlock(&lock);
  igb_frames_free(frames);
}

uint64_t igb_wire_take(struct igb_end *end, const struct igb_port *owner, struct igb_frames *out) {
  uint64_t missed = 0;
  pthread_mutex_lock(&lock);
  if (end->owner == owner) {
    igb_frames_join(out, &end->inbox);
    missed = end->n_missed;
    end->n_missed = 0;
    end->has_mail = 0;
    end->full_ns = 0;
    for (struct igb_end *other = ends; end->awaited && other; other = other->next)
      other->to_be_woken |= is_other(end, other);
    if (end->awaited)
      end->owes_wakes = 1;
    end->awaited = 0;
  }
  pthread_mutex_unlock(&lock);
  return missed;
}

int igb_wire_bring(struct igb_end *end, struct igb_frame *frame) {
  pthread_mutex_lock(&lock);
  int full = end->listening && is_full(end) && !is_stuck(end);
  if (!full && end->listening) {
    deliver(end, frame);
    wake(end);
  } else if (!full)
    igb_frame_free(frame);
  pthread_mutex_unlock(&lock);
  return full ? -EAGAIN : 0;
}

void igb_wire_wake_others(struct igb_end *end) {
  struct igb_end *other;
  if (!end->owes_wakes)
    return;
  pthread_mutex_lock(&lock);
  end->owes_wakes = 0;
  while ((other = next_to_wake(end)))
    wake(other);
  pthread_mutex_unlock(&lock);
}
