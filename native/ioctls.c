/*
 * The ioctls between their arrival and their answer.
 *
 * FETCHING: a reader is in the client's memory; READY: Python may take it; TAKEN: Python has it.
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

#include "iommufs.h"
#include "transport.h"

enum state { FETCHING, READY, TAKEN };

struct pending {
  struct pending *next;
  enum state state;
  int interrupted; /* to be told to Python */
  uint64_t after;  /* the number of RELEASEs that arrived before */
  struct iofs_ioctl ioctl;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct pending *ioctls, **tail = &ioctls;
static uint64_t releases_arrived, releases_answered;
static int ready_fd = -1;

static void notify(void) { eventfd_write(ready_fd, 1); }

/* Where the pointer to it stands; to NULL if there is none. */
static struct pending **find(uint64_t unique) {
  struct pending **at = &ioctls;
  while (*at && (*at)->ioctl.unique != unique)
    at = &(*at)->next;
  return at;
}

static void drop(struct pending **at) {
  struct pending *entry = *at;
  *at = entry->next;
  if (!*at)
    tail = at;
  free(entry);
}

int iofs_ioctls_open(void) {
  ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return ready_fd < 0 ? -errno : 0;
}

void iofs_ioctls_close(void) {
  pthread_mutex_lock(&lock);
  while (ioctls)
    drop(&ioctls);
  releases_arrived = releases_answered = 0;
  if (ready_fd >= 0)
    close(ready_fd);
  ready_fd = -1;
  pthread_mutex_unlock(&lock);
}

int iofs_ioctls_add(const struct iofs_ioctl *ioctl) {
  struct pending *entry = calloc(1, sizeof *entry);
  if (!entry)
    return -ENOMEM;
  entry->ioctl = *ioctl;
  pthread_mutex_lock(&lock);
  entry->after = releases_arrived;
  *tail = entry;
  tail = &entry->next;
  pthread_mutex_unlock(&lock);
  return 0;
}

void iofs_ioctls_fetched(const struct iofs_ioctl *ioctl) {
  pthread_mutex_lock(&lock);
  struct pending *entry = *find(ioctl->unique);
  if (entry) { /* its caller was not let go meanwhile */
    entry->ioctl = *ioctl;
    entry->state = READY;
  }
  pthread_mutex_unlock(&lock);
  notify();
}

int iofs_ioctls_remove(uint64_t unique) {
  pthread_mutex_lock(&lock);
  struct pending **at = find(unique);
  int found = *at != NULL;
  if (found)
    drop(at);
  pthread_mutex_unlock(&lock);
  return found;
}

int iofs_ioctls_interrupt(uint64_t unique) {
  pthread_mutex_lock(&lock);
  struct pending **at = find(unique);
  int stuck = *at && (*at)->state == FETCHING;
  if (stuck)
    drop(at);
  else if (*at)
    (*at)->interrupted = 1;
  pthread_mutex_unlock(&lock);
  notify();
  return stuck;
}

void iofs_ioctls_release_arrived(void) {
  pthread_mutex_lock(&lock);
  releases_arrived++;
  pthread_mutex_unlock(&lock);
}

void iofs_ioctls_release_answered(void) {
  pthread_mutex_lock(&lock);
  releases_answered++;
  pthread_mutex_unlock(&lock);
  notify();
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
  eventfd_read(ready_fd, &any);
  pthread_mutex_lock(&lock);
  for (struct pending *entry = ioctls; entry && !found; entry = entry->next)
    if (entry->state == READY && entry->after <= releases_answered) {
      entry->state = TAKEN;
      *out = entry->ioctl;
      found = 1;
    }
  pthread_mutex_unlock(&lock);
  if (found) /* there may be more: the next call finds out */
    notify();
  return found;
}

uint64_t iofs_transport_next_interrupt(void) {
  uint64_t unique = 0;
  pthread_mutex_lock(&lock);
  for (struct pending *entry = ioctls; entry && !unique; entry = entry->next)
    if (entry->interrupted && entry->state == TAKEN) {
      entry->interrupted = 0;
      unique = entry->ioctl.unique;
    }
  pthread_mutex_unlock(&lock);
  return unique;
}
