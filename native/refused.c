/*
 * The ledgers of refused DMAs: one slot for each way to be refused, all under one mutex. A refusal
 * is not what a device lives from, and Python empties the slots soon after the first.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "alloc.h"
#include "iommufs.h"

#define N_SLOTS (2 * IOFS_N_DMA_REASONS)

struct iofs_refused {
  struct iofs_refused *next;
  uint64_t cookie;
  struct iofs_refusals slots[N_SLOTS]; /* n is 0: empty */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct iofs_refused *ledgers;
static unsigned n_full; /* slots of all ledgers that are not empty: event_fd is readable if any */
static int event_fd = -1;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init(void) { event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

/* With the lock held, whenever a slot is emptied. */
static void one_less(void) {
  eventfd_t value;
  if (--n_full == 0)
    eventfd_read(event_fd, &value);
}

int iofs_refused_new(uint64_t cookie, struct iofs_refused **out) {
  pthread_once(&once, init);
  struct iofs_refused *refused = alloc_zeroed(sizeof *refused);
  if (!refused)
    return -ENOMEM;
  refused->cookie = cookie;
  pthread_mutex_lock(&lock);
  refused->next = ledgers;
  ledgers = refused;
  pthread_mutex_unlock(&lock);
  *out = refused;
  return 0;
}

void iofs_refused_free(struct iofs_refused *refused) {
  if (!refused)
    return;
  pthread_mutex_lock(&lock);
  for (unsigned i = 0; i < N_SLOTS; i++)
    if (refused->slots[i].n)
      one_less();
  struct iofs_refused **at = &ledgers;
  while (*at != refused)
    at = &(*at)->next;
  *at = refused->next;
  pthread_mutex_unlock(&lock);
  alloc_free(refused);
}

void iofs_refused_report(struct iofs_refused *refused, const struct iofs_dma_fault *fault,
                         uint64_t length) {
  assert(fault->reason > IOFS_DMA_OK && fault->reason < IOFS_N_DMA_REASONS);
  struct iofs_refusals *slot = &refused->slots[2 * fault->reason + !!fault->write];
  pthread_mutex_lock(&lock);
  if (slot->n++ == 0) {
    slot->cookie = refused->cookie;
    slot->iova = fault->iova;
    slot->length = length;
    slot->write = !!fault->write;
    slot->reason = fault->reason;
    if (n_full++ == 0)
      eventfd_write(event_fd, 1);
  }
  pthread_mutex_unlock(&lock);
}

int iofs_refused_fd(void) {
  pthread_once(&once, init);
  return event_fd;
}

int iofs_refused_next(struct iofs_refusals *out) {
  int found = 0;
  pthread_mutex_lock(&lock);
  for (struct iofs_refused *refused = n_full ? ledgers : NULL; refused && !found;
       refused = refused->next)
    for (unsigned i = 0; i < N_SLOTS && !found; i++)
      if (refused->slots[i].n) {
        *out = refused->slots[i];
        refused->slots[i].n = 0;
        one_less();
        found = 1;
      }
  pthread_mutex_unlock(&lock);
  return found;
}
