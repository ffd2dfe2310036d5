/*
 * The ioctls between their arrival and their answer.
 *
 * HELD: a reader is in the client's memory, or carries it out; READY: Python may take it; TAKEN:
 * Python has it. GONE: the caller was signalled while a reader held it, and has its answer.
 * LENT: not an ioctl, but a write that pyfuse3 has.
 * An ioctl is handed out only after every RELEASE that arrived before it is answered, because
 * close(2) returns before its RELEASE is handled and the client may rely on its effect.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "serve.h"
#include "transport.h"

enum state { HELD, READY, TAKEN, GONE, LENT };

struct pending {
  struct pending *next, **from; /* the pointer to it */
  enum state state;
  int signalled; /* its caller was; if it dies of that, it must not wait any longer */
  uint64_t after;  /* the number of RELEASEs that arrived before */
  struct iofs_ioctl ioctl;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct pending *ioctls, **tail = &ioctls;
static uint64_t releases_arrived, releases_answered;
static int ready_fd = -1;

static void notify(void) { eventfd_write(ready_fd, 1); }

static struct pending *find(uint64_t unique) {
  struct pending *entry = ioctls;
  while (entry && entry->ioctl.unique != unique)
    entry = entry->next;
  return entry;
}

static void unlink_entry(struct pending *entry) {
  *entry->from = entry->next;
  *(entry->next ? &entry->next->from : &tail) = entry->from;
}

static void drop(struct pending *entry) {
  unlink_entry(entry);
  free(entry);
}

int iofs_ioctls_open(void) {
  ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return ready_fd < 0 ? -errno : 0;
}

void iofs_ioctls_close(void) {
  pthread_mutex_lock(&lock);
  while (ioctls) {
    if (ioctls->state == HELD) { /* its reader frees it */
      ioctls->state = GONE;
      unlink_entry(ioctls);
    } else {
      drop(ioctls);
    }
  }
  releases_arrived = releases_answered = 0;
  if (ready_fd >= 0)
    close(ready_fd);
  ready_fd = -1;
  pthread_mutex_unlock(&lock);
}

static struct pending *add(uint64_t unique, int tid, enum state state) {
  struct pending *entry = calloc(1, sizeof *entry);
  if (!entry)
    return NULL;
  entry->state = state;
  entry->ioctl.unique = unique;
  entry->ioctl.tid = tid;
  pthread_mutex_lock(&lock);
  entry->after = releases_arrived;
  entry->from = tail;
  *tail = entry;
  tail = &entry->next;
  pthread_mutex_unlock(&lock);
  return entry;
}

struct pending *iofs_ioctls_add(uint64_t unique, int tid) { return add(unique, tid, HELD); }

int iofs_ioctls_lend(uint64_t unique, int tid) { return !!add(unique, tid, LENT); }

int iofs_ioctls_is_due(const struct pending *entry) {
  pthread_mutex_lock(&lock);
  int due = entry->after <= releases_answered;
  pthread_mutex_unlock(&lock);
  return due;
}

void iofs_ioctls_fetched(struct pending *entry, const struct iofs_ioctl *ioctl) {
  pthread_mutex_lock(&lock);
  if (entry->state == GONE) {
    free(entry);
  } else {
    entry->ioctl = *ioctl;
    entry->state = READY;
    notify();
  }
  pthread_mutex_unlock(&lock);
}

int iofs_ioctls_take(struct pending *entry) {
  pthread_mutex_lock(&lock);
  int waits = entry->state == HELD;
  if (waits)
    entry->state = TAKEN;
  else
    free(entry);
  pthread_mutex_unlock(&lock);
  return waits;
}

int iofs_ioctls_finish(struct pending *entry) {
  pthread_mutex_lock(&lock);
  int waits = entry->state == HELD;
  if (waits)
    unlink_entry(entry);
  pthread_mutex_unlock(&lock);
  free(entry);
  return waits;
}

int iofs_ioctls_remove(uint64_t unique) {
  pthread_mutex_lock(&lock);
  struct pending *entry = find(unique);
  if (entry)
    drop(entry);
  pthread_mutex_unlock(&lock);
  return !!entry;
}

void iofs_ioctls_signalled(uint64_t unique) {
  pthread_mutex_lock(&lock);
  struct pending *entry = find(unique);
  if (entry) {
    entry->signalled = 1;
    notify();
  }
  pthread_mutex_unlock(&lock);
}

void iofs_ioctls_release_arrived(void) {
  pthread_mutex_lock(&lock);
  releases_arrived++;
  pthread_mutex_unlock(&lock);
}

void iofs_ioctls_release_answered(void) {
  pthread_mutex_lock(&lock);
  releases_answered++;
  notify();
  pthread_mutex_unlock(&lock);
}

int iofs_ioctls_releases_are_answered(void) {
  pthread_mutex_lock(&lock);
  int all = releases_arrived == releases_answered;
  pthread_mutex_unlock(&lock);
  return all;
}

void iofs_transport_releases(uint64_t *arrived, uint64_t *answered) {
  pthread_mutex_lock(&lock);
  *arrived = releases_arrived;
  *answered = releases_answered;
  pthread_mutex_unlock(&lock);
}

int iofs_transport_ioctl_fd(void) { return ready_fd; }

int iofs_transport_next_ioctl(struct iofs_ioctl *out) {
  eventfd_t any;
  int found = 0;
  pthread_mutex_lock(&lock);
  for (struct pending *entry = ioctls; entry && !found; entry = entry->next)
    if (entry->state == READY && entry->after <= releases_answered) {
      entry->state = TAKEN;
      *out = entry->ioctl;
      found = 1;
    }
  if (!found)
    eventfd_read(ready_fd, &any);
  pthread_mutex_unlock(&lock);
  return found;
}

/* One whose caller is dying and waits for a reader or for Python; the lock is held. */
static struct pending *find_dying(size_t *n_signalled) {
  *n_signalled = 0;
  for (struct pending *entry = ioctls; entry; entry = entry->next)
    if (entry->signalled) {
      if (entry->state != READY && iofs_client_is_dying(entry->ioctl.tid))
        return entry;
      ++*n_signalled;
    }
  return NULL;
}

/* The state that the next one was in, the lock not held; GONE: there is none. */
static enum state take_dying(size_t *n_signalled, uint64_t *unique) {
  pthread_mutex_lock(&lock);
  struct pending *entry = find_dying(n_signalled);
  enum state state = entry ? entry->state : GONE;
  *unique = entry ? entry->ioctl.unique : 0;
  if (state == HELD) { /* its reader frees it */
    entry->state = GONE;
    unlink_entry(entry);
  } else if (state == LENT) {
    drop(entry);
  } else if (entry) {
    entry->signalled = 0;
  }
  pthread_mutex_unlock(&lock);
  return state;
}

uint64_t iofs_transport_next_dying(size_t *n_signalled) {
  uint64_t unique;
  for (;;) {
    enum state state = take_dying(n_signalled, &unique);
    if (state != HELD && state != LENT)
      return unique;
    iofs_answer(unique, -EINTR, NULL, 0);
  }
}
