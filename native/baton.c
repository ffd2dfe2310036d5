/*
 * The baton: whoever holds it may run the Python that serves clients, which is made for one thread at
 * a time (see "visits" in serve.h).
 *
 * The event loop's thread comes before readers that wait. LENT: a reader has the loop's thread do
 * something, and waits for that; RETURNED: it is done.
 */
#include "baton.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "serve.h"

/* The loop's thread must go through Python now and then, which handles signals there. */
#define LOOP_WAITS_NS 100000000ull

enum holder { NOBODY, LOOP, READER, LENT, RETURNED };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t for_lender = PTHREAD_COND_INITIALIZER;
static pthread_cond_t for_loop, for_readers; /* CLOCK_MONOTONIC, see init() */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static enum holder holder = LOOP;
static unsigned n_waiting; /* readers */
static int loop_waits;
static uint64_t n_eras;
static _Atomic uint64_t era;

static void init(void) {
  pthread_condattr_t attr;
  pthread_condattr_init(&attr);
  pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
  pthread_cond_init(&for_loop, &attr);
  pthread_cond_init(&for_readers, &attr);
  pthread_condattr_destroy(&attr);
}

static struct timespec after(uint64_t ns) {
  struct timespec then;
  clock_gettime(CLOCK_MONOTONIC, &then);
  ns += (uint64_t)then.tv_nsec;
  then.tv_sec += (time_t)(ns / 1000000000);
  then.tv_nsec = (long)(ns % 1000000000);
  return then;
}

/* With the lock. */
static void set_free(void) {
  holder = NOBODY;
  if (loop_waits)
    pthread_cond_signal(&for_loop);
  else if (n_waiting)
    pthread_cond_signal(&for_readers);
}

/* ---- readers --------------------------------------------------------------------------------- */

uint64_t baton_era(void) { return era; }

static int is_free(void) { return holder == NOBODY && !loop_waits; }

static int is_now(uint64_t of_era) { return of_era && era == of_era; }

int baton_take(uint64_t of_era, uint64_t ns) {
  pthread_mutex_lock(&lock);
  if (!is_free() && is_now(of_era)) {
    struct timespec until = ns == BATON_FOR_EVER ? (struct timespec){0, 0} : after(ns);
    int late = 0;
    n_waiting++;
    while (!is_free() && is_now(of_era) && !late)
      if (ns == BATON_FOR_EVER)
        pthread_cond_wait(&for_readers, &lock);
      else
        late = pthread_cond_timedwait(&for_readers, &lock, &until) == ETIMEDOUT;
    n_waiting--;
  }
  int taken = is_free() && is_now(of_era);
  if (taken)
    holder = READER;
  pthread_mutex_unlock(&lock);
  return taken;
}

void baton_give(void) {
  pthread_mutex_lock(&lock);
  assert(holder == READER);
  set_free();
  pthread_mutex_unlock(&lock);
}

void iofs_baton_lend(void) {
  pthread_mutex_lock(&lock);
  assert(holder == READER);
  holder = LENT;
  pthread_cond_signal(&for_loop);
  while (holder != RETURNED)
    pthread_cond_wait(&for_lender, &lock);
  holder = READER;
  pthread_mutex_unlock(&lock);
}

/* ---- the event loop -------------------------------------------------------------------------- */

void baton_open(void) {
  pthread_once(&once, init);
  pthread_mutex_lock(&lock);
  holder = LOOP;
  era = ++n_eras;
  pthread_mutex_unlock(&lock);
}

void baton_close(void) {
  pthread_mutex_lock(&lock);
  assert(holder == LOOP);
  era = 0;
  pthread_cond_broadcast(&for_readers);
  pthread_mutex_unlock(&lock);
}

void iofs_baton_give(void) {
  pthread_mutex_lock(&lock);
  if (era && holder == LOOP)
    set_free();
  pthread_mutex_unlock(&lock);
}

int iofs_baton_take(void) {
  pthread_mutex_lock(&lock);
  if (holder == READER || holder == RETURNED) {
    struct timespec until = after(LOOP_WAITS_NS);
    int late = 0;
    loop_waits = 1;
    while ((holder == READER || holder == RETURNED) && !late)
      late = pthread_cond_timedwait(&for_loop, &lock, &until) == ETIMEDOUT;
    loop_waits = 0;
  }
  int found = holder == LENT ? IOFS_BATON_LENT : IOFS_BATON_WAITED_FOR;
  if (holder == NOBODY || holder == LOOP) {
    holder = LOOP;
    found = IOFS_BATON_TAKEN;
  }
  pthread_mutex_unlock(&lock);
  return found;
}

void iofs_baton_return(void) {
  pthread_mutex_lock(&lock);
  assert(holder == LENT);
  holder = RETURNED;
  pthread_cond_signal(&for_lender);
  pthread_mutex_unlock(&lock);
}
