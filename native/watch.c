/*
 * Stores of clients to mapped BARs, found by looking: one poller thread compares the watched words
 * of all BARs with what was last seen there.
 *
 * Order. A scan loads the words of a watch from the last added to the first, again until nothing
 * has changed in between (a client that stores without pause cuts that short), and reports what
 * changed from the first to the last. So when a client stores an address and then rings a doorbell,
 * and the doorbell was added later, the address is never reported after it: a scan that loads the
 * new doorbell loads the new address too.
 *
 * Each watch has a ring of events. A watch whose ring could overflow is not scanned until its
 * events are fetched; the client's stores wait in the memory meanwhile.
 *
 * One mutex for everything. The poller holds it for a scan and lets all others go first between
 * two scans.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "iommufs.h"

/* After a store the next one is likely to come soon: this long the poller spins. */
#define SPIN_NS 100000
/* Then it sleeps, each time twice as long, up to the max_sleep_us of the most impatient watch. */
#define MIN_SLEEP_US 20
/* How often a scan that found stores looks again, until no new ones have come meanwhile. */
#define STEADY_TRIES 64
/* Free events that a watch with n words has at least. */
#define RING_SPARE 256

struct word {
  uint64_t offset;
  uint64_t seen;   /* by the model: reported, or stored by itself */
  uint64_t loaded; /* by the last look; between two scans the same */
  uint32_t size;
  int clears;
};

struct iofs_watch {
  struct iofs_watch *next;
  unsigned char *memory;
  uint64_t cookie;
  uint32_t max_sleep_us;
  size_t n_words;
  uint64_t n_scans;
  struct word *words;
  struct iofs_watch_event *ring;
  size_t ring_size, ring_first, ring_count;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t words_changed; /* CLOCK_MONOTONIC, see init() */
static _Atomic unsigned n_visitors;  /* threads that want the lock and are not the poller */
static struct iofs_watch *watches;   /* the next to be asked for events first */
static size_t n_words, n_events;     /* of all watches */
static uint32_t sleep_us = MIN_SLEEP_US;
static int event_fd = -1;
static int started;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init(void) {
  pthread_condattr_t attr;
  pthread_condattr_init(&attr);
  pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
  pthread_cond_init(&words_changed, &attr);
  pthread_condattr_destroy(&attr);
  event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static void enter(void) {
  atomic_fetch_add(&n_visitors, 1);
  pthread_mutex_lock(&lock);
  atomic_fetch_sub(&n_visitors, 1);
}

static void leave(void) { pthread_mutex_unlock(&lock); }

/* ---- words: little-endian, naturally aligned, shared with clients ---- */

static uint64_t word_load(const unsigned char *memory, uint64_t offset, uint32_t size) {
  if (size == 8)
    return __atomic_load_n((const uint64_t *)(memory + offset), __ATOMIC_ACQUIRE);
  return __atomic_load_n((const uint32_t *)(memory + offset), __ATOMIC_ACQUIRE);
}

static uint64_t word_exchange(unsigned char *memory, uint64_t offset, uint32_t size,
                              uint64_t value) {
  if (size == 8)
    return __atomic_exchange_n((uint64_t *)(memory + offset), value, __ATOMIC_ACQ_REL);
  return __atomic_exchange_n((uint32_t *)(memory + offset), (uint32_t)value, __ATOMIC_ACQ_REL);
}

/* Stores 4 bytes; returns the 8-byte word around them as it was, *after gets what it is then. */
static uint64_t half_exchange(unsigned char *memory, uint64_t offset, uint64_t value,
                              uint64_t *after) {
  uint64_t *word = (uint64_t *)(memory + (offset & ~UINT64_C(7)));
  unsigned shift = offset & 4 ? 32 : 0;
  uint64_t mask = (uint64_t)UINT32_MAX << shift;
  uint64_t before = __atomic_load_n(word, __ATOMIC_ACQUIRE);
  do
    *after = (before & ~mask) | (value << shift & mask);
  while (!__atomic_compare_exchange_n(word, &before, *after, 0, __ATOMIC_ACQ_REL,
                                      __ATOMIC_ACQUIRE));
  return before;
}

/* `now` unless it is not `before` any more. */
static void word_replace(unsigned char *memory, uint64_t offset, uint32_t size, uint64_t before,
                         uint64_t now) {
  uint32_t before4 = (uint32_t)before;
  if (size == 8)
    __atomic_compare_exchange_n((uint64_t *)(memory + offset), &before, now, 0, __ATOMIC_ACQ_REL,
                                __ATOMIC_RELAXED);
  else
    __atomic_compare_exchange_n((uint32_t *)(memory + offset), &before4, (uint32_t)now, 0,
                                __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static int is_word(uint64_t offset, uint32_t size) {
  return (size == 4 || size == 8) && offset % size == 0;
}

static int overlaps(const struct word *word, uint64_t offset, uint32_t size) {
  return word->offset < offset + size && offset < word->offset + word->size;
}

/* By a word of at least so many bytes. */
static int is_watched(const struct iofs_watch *watch, uint64_t offset, uint32_t size,
                      uint32_t at_least) {
  for (size_t i = 0; i < watch->n_words; i++)
    if (watch->words[i].size >= at_least && overlaps(&watch->words[i], offset, size))
      return 1;
  return 0;
}

/* ---- events ---- */

static void signal_events(void) {
  uint64_t one = 1;
  if (write(event_fd, &one, sizeof one) < 0)
    assert(errno == EAGAIN); /* the counter is full: readable all the same */
}

static void clear_events(void) {
  uint64_t count;
  if (read(event_fd, &count, sizeof count) < 0)
    assert(errno == EAGAIN);
}

static void push_event(struct iofs_watch *watch, const struct word *word, uint64_t value) {
  /* Full only if the model itself stores again and again without fetching: a client that keeps
   * pace with that has its stores merged, as it has those that fall between two scans. */
  if (watch->ring_count == watch->ring_size)
    return;
  size_t at = (watch->ring_first + watch->ring_count++) % watch->ring_size;
  watch->ring[at] = (struct iofs_watch_event){.cookie = watch->cookie,
                                              .offset = word->offset,
                                              .value = value,
                                              .scan = watch->n_scans,
                                              .size = word->size};
  if (n_events++ == 0)
    signal_events();
}

/* Load every word; 1 if one is not what it was the last time. */
static int load_words(struct iofs_watch *watch) {
  int differs = 0;
  for (size_t i = watch->n_words; i-- > 0;) {
    struct word *word = &watch->words[i];
    uint64_t value = word_load(watch->memory, word->offset, word->size);
    differs |= value != word->loaded;
    word->loaded = value;
  }
  return differs;
}

static size_t scan(struct iofs_watch *watch) {
  if (watch->ring_size - watch->ring_count < watch->n_words)
    return 0;
  if (!load_words(watch))
    return 0;
  /* Words that are the same twice in a row were so at one moment: all that the client had stored
   * by then, and nothing it stored later. */
  for (int i = 0; i < STEADY_TRIES && load_words(watch); i++)
    continue;
  watch->n_scans++;
  size_t n = 0;
  for (size_t i = 0; i < watch->n_words; i++) {
    struct word *word = &watch->words[i];
    if (word->loaded == word->seen)
      continue;
    push_event(watch, word, word->loaded);
    if (word->clears) {
      /* What the client has stored there since is found by the next scan. */
      word_replace(watch->memory, word->offset, word->size, word->loaded, 0);
      word->loaded = 0;
    }
    word->seen = word->loaded;
    n++;
  }
  return n;
}

/* ---- the poller ---- */

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint32_t shortest_max_sleep(void) {
  uint32_t shortest = UINT32_MAX;
  for (struct iofs_watch *watch = watches; watch; watch = watch->next)
    if (watch->n_words && watch->max_sleep_us < shortest)
      shortest = watch->max_sleep_us;
  return shortest;
}

/* Until it is time for the next scan, or words were added. */
static void back_off(void) {
  uint32_t longest = shortest_max_sleep();
  if (sleep_us > longest)
    sleep_us = longest;
  uint64_t until = now_ns() + (uint64_t)sleep_us * 1000;
  struct timespec time = {.tv_sec = (time_t)(until / 1000000000),
                          .tv_nsec = (long)(until % 1000000000)};
  pthread_cond_timedwait(&words_changed, &lock, &time);
  sleep_us = sleep_us < MIN_SLEEP_US ? MIN_SLEEP_US : sleep_us * 2;
}

static void *poll_words(void *unused) {
  (void)unused;
  uint64_t last_store = 0;
  pthread_mutex_lock(&lock);
  for (;;) {
    while (n_words == 0)
      pthread_cond_wait(&words_changed, &lock);
    size_t n = 0;
    for (struct iofs_watch *watch = watches; watch; watch = watch->next)
      n += scan(watch);
    uint64_t now = now_ns();
    if (n) {
      last_store = now;
      sleep_us = MIN_SLEEP_US;
    }
    if (now - last_store >= SPIN_NS) {
      back_off();
      continue;
    }
    pthread_mutex_unlock(&lock);
    do
      sched_yield();
    while (atomic_load(&n_visitors));
    pthread_mutex_lock(&lock);
  }
  return NULL;
}

static int start_poller(void) {
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  /* Signals are for the program's own threads. */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  int result = pthread_create(&thread, &attr, poll_words, NULL);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attr);
  return -result;
}

/* ---- interface ---- */

int iofs_watch_new(void *memory, uint64_t cookie, uint32_t max_sleep_us,
                   struct iofs_watch **out) {
  pthread_once(&once, init);
  if (event_fd < 0)
    return -EMFILE;
  struct iofs_watch *watch = calloc(1, sizeof *watch);
  if (!watch)
    return -ENOMEM;
  watch->memory = memory;
  watch->cookie = cookie;
  watch->max_sleep_us = max_sleep_us;
  enter();
  int result = started ? 0 : start_poller();
  if (result == 0) {
    started = 1;
    watch->next = watches;
    watches = watch;
  }
  leave();
  if (result) {
    free(watch);
    return result;
  }
  *out = watch;
  return 0;
}

/* Room for one word more, and for the events that go with it. */
static int grow(struct iofs_watch *watch) {
  size_t n = watch->n_words + 1;
  struct word *words = realloc(watch->words, n * sizeof *words);
  if (!words)
    return -ENOMEM;
  watch->words = words;
  if (watch->ring_size >= n + RING_SPARE)
    return 0;
  size_t size = 2 * (n + RING_SPARE);
  struct iofs_watch_event *ring = malloc(size * sizeof *ring);
  if (!ring)
    return -ENOMEM;
  for (size_t i = 0; i < watch->ring_count; i++)
    ring[i] = watch->ring[(watch->ring_first + i) % watch->ring_size];
  free(watch->ring);
  watch->ring = ring;
  watch->ring_size = size;
  watch->ring_first = 0;
  return 0;
}

static int add(struct iofs_watch *watch, uint64_t offset, uint32_t size, int clears) {
  if (!is_word(offset, size))
    return -EINVAL;
  enter();
  int result = is_watched(watch, offset, size, 4) ? -EEXIST : grow(watch);
  if (result == 0) {
    uint64_t value = word_load(watch->memory, offset, size);
    watch->words[watch->n_words++] = (struct word){
        .offset = offset, .seen = value, .loaded = value, .size = size, .clears = clears};
    n_words++;
    pthread_cond_signal(&words_changed);
  }
  leave();
  return result;
}

int iofs_watch_add(struct iofs_watch *watch, uint64_t offset, uint32_t size) {
  return add(watch, offset, size, 0);
}

int iofs_watch_add_clearing(struct iofs_watch *watch, uint64_t offset, uint32_t size) {
  return add(watch, offset, size, 1);
}

/*
 * The model stored `value` where `before` was, at [offset, offset + size), and a watched word lies
 * in there: it now holds what the model said. Where `before` is not what was last seen, a client's
 * store that no scan has seen is gone from the memory, but not lost.
 */
static void take_store(struct iofs_watch *watch, struct word *word, uint64_t offset,
                       uint64_t before, uint64_t value) {
  unsigned shift = 8 * (unsigned)(word->offset - offset);
  uint64_t mask = word->size == 8 ? UINT64_MAX : UINT32_MAX;
  before = before >> shift & mask;
  if (before != word->seen) {
    watch->n_scans++; /* this one was not seen together with any other */
    push_event(watch, word, before);
  }
  word->seen = word->loaded = value >> shift & mask;
}

uint64_t iofs_watch_store(struct iofs_watch *watch, void *memory, uint64_t offset, uint32_t size,
                          uint64_t value) {
  assert(is_word(offset, size));
  enter();
  uint64_t before, word = offset;
  uint32_t word_size = size;
  if (size == 4 && is_watched(watch, offset & ~UINT64_C(7), 8, 8)) {
    uint64_t half = value;
    before = half_exchange(memory, offset, half, &value);
    word = offset & ~UINT64_C(7);
    word_size = 8;
  } else {
    before = word_exchange(memory, offset, size, value);
  }
  for (size_t i = 0; i < watch->n_words; i++)
    if (overlaps(&watch->words[i], word, word_size))
      take_store(watch, &watch->words[i], word, before, value);
  sleep_us = MIN_SLEEP_US; /* clients answer what devices say */
  leave();
  before >>= 8 * (offset - word);
  return size == 4 ? (uint32_t)before : before;
}

void iofs_watch_free(struct iofs_watch *watch) {
  enter();
  struct iofs_watch **link = &watches;
  while (*link != watch)
    link = &(*link)->next;
  *link = watch->next;
  n_words -= watch->n_words;
  if (watch->ring_count && (n_events -= watch->ring_count) == 0)
    clear_events();
  leave();
  free(watch->words);
  free(watch->ring);
  free(watch);
}

int iofs_watch_fd(void) {
  pthread_once(&once, init);
  return event_fd;
}

int iofs_watch_next(struct iofs_watch_event *out) {
  pthread_once(&once, init);
  enter();
  struct iofs_watch **link = &watches;
  while (*link && !(*link)->ring_count)
    link = &(*link)->next;
  struct iofs_watch *watch = *link;
  if (watch) {
    *out = watch->ring[watch->ring_first];
    watch->ring_first = (watch->ring_first + 1) % watch->ring_size;
    watch->ring_count--;
    if (--n_events == 0)
      clear_events();
    /* To the end of the list, so that no watch keeps the others waiting. */
    *link = watch->next;
    watch->next = NULL;
    while (*link)
      link = &(*link)->next;
    *link = watch;
  }
  leave();
  return watch != NULL;
}
