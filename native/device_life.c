/*
 * Lives of devices (device.h): the thread that works for one, and the words of BAR memory in which
 * it looks for stores of clients.
 *
 * A scan loads the words from the last to the first, eight bytes at a time, and reports what changed
 * from the first to the last: a scan that loads a new doorbell loads what was stored before it too.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "alloc.h"
#include "device_host.h"
#include "flight.h"

/* After work there is likely to be more soon: this long the thread looks again and again. */
#define SPIN_NS 200000ull
#define LOOKS 20 /* of about 50 ns, before it lets others run */
/* On a machine with more to do than cores, to give way is to wait for a whole slice of somebody who
 * spins. Where that took so long, it naps for a while instead: who wakes up is soon let in again. */
#define CROWDED_NS 100000ull
#define CROWD_NS 20000000ull
#define NAP_NS 20000l
#define SLICE_NS 100000ull
/* Then it sleeps between two looks, for a part of the time without work, at most so long. */
#define IDLE_PART 16
#define MAX_SLEEP_NS 10000000ull
/* The end of a life is waited for that long: a client's memory may not answer at all; and if it is
 * seen that the client itself keeps it from answering, no longer. */
#define PATIENCE_NS 50000000ull
#define LOOK_NS 1000000ull
/* Then its thread is left behind, of so many for one device. */
#define MAX_LEFT_BEHIND 16

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static struct timespec time_of(uint64_t ns) {
  return (struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
}

static void pause_a_moment(void) {
#if defined __x86_64__ || defined __i386__
  __builtin_ia32_pause();
#elif defined __aarch64__
  __asm__ volatile("yield");
#endif
}

static void init_cond(pthread_cond_t *cond) {
  pthread_condattr_t attr;
  pthread_condattr_init(&attr);
  pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
  pthread_cond_init(cond, &attr);
  pthread_condattr_destroy(&attr);
}

/* ---- words ------------------------------------------------------------------------------------ */

static uint64_t load(const unsigned char *memory, uint32_t size) {
  return size == 8 ? __atomic_load_n((const uint64_t *)(const void *)memory, __ATOMIC_ACQUIRE)
                   : __atomic_load_n((const uint32_t *)(const void *)memory, __ATOMIC_ACQUIRE);
}

/* What was there before. */
static uint64_t exchange(unsigned char *memory, uint32_t size, uint64_t value) {
  if (size == 8)
    return __atomic_exchange_n((uint64_t *)(void *)memory, value, __ATOMIC_ACQ_REL);
  return __atomic_exchange_n((uint32_t *)(void *)memory, (uint32_t)value, __ATOMIC_ACQ_REL);
}

/* Where a word of BAR memory is; NULL: this life has none any more. */
static unsigned char *place(const struct life *life, unsigned bar, uint64_t offset, unsigned size) {
  const struct bar *there = &life->device->bars[bar];
  assert(bar < N_BARS && (size == 4 || size == 8) && offset % size == 0);
  if (life->ended || !there->memory)
    return NULL;
  assert(offset + size <= there->size);
  return there->memory + offset;
}

static unsigned shift_of(const struct word *word) {
  return word->size == 4 && word->offset & 4 ? 32 : 0;
}

static uint64_t mask_of(const struct word *word) {
  return word->size == 8 ? UINT64_MAX : (uint64_t)UINT32_MAX << shift_of(word);
}

static uint64_t part_of(uint64_t chunk, const struct word *word) {
  return (chunk & mask_of(word)) >> shift_of(word);
}

static void set_part(uint64_t *chunk, const struct word *word, uint64_t value) {
  *chunk = (*chunk & ~mask_of(word)) | (value << shift_of(word) & mask_of(word));
}

/* Whether there is anything to report. Nearly always nothing is new, so this is what has to be
 * fast. */
static int load_chunks(struct life *life) {
  uint64_t changed = life->n_missed;
  for (size_t i = life->n_chunks; i--;) {
    struct chunk *chunk = &life->chunks[i];
    chunk->loaded = __atomic_load_n(chunk->memory, __ATOMIC_ACQUIRE);
    changed |= (chunk->loaded ^ chunk->seen) & chunk->mask;
  }
  return changed != 0;
}

/* Take the store to a word in, if there is one. */
static int take(struct life *life, struct word *word, uint64_t *value) {
  struct chunk *chunk = &life->chunks[word->chunk];
  uint64_t loaded = part_of(chunk->loaded, word);
  *value = word->has_missed ? word->missed : loaded;
  if (loaded == part_of(chunk->seen, word) && !word->has_missed)
    return 0;
  if (word->has_missed) { /* what was loaded is for the next scan, if it is still there */
    word->has_missed = 0;
    life->n_missed--;
  } else
    set_part(&chunk->seen, word, loaded);
  return 1;
}

/* At once, or with the others of this scan. */
static void report(struct life *life, const struct word *word, uint64_t value, size_t *n) {
  const struct iommufs_model *model = life->device->model;
  life->woken = 1;
  if (model->stores)
    life->stores[(*n)++] = (struct iommufs_store){word->offset, value, word->bar, word->size};
  else
    model->write(life->state, word->bar, word->offset, word->size, value);
}

void life_scan(struct life *life) {
  size_t n = 0;
  uint64_t value;
  if (!load_chunks(life))
    return;
  for (size_t i = 0; i < life->n_chunks; i++) {
    const struct chunk *chunk = &life->chunks[i];
    size_t w = chunk->first_word, end = w + chunk->n_words; /* a model may watch more now */
    if (!life->n_missed && !((chunk->loaded ^ chunk->seen) & chunk->mask))
      continue;
    for (; w < end; w++)
      if (take(life, &life->words[w], &value))
        report(life, &life->words[w], value, &n);
  }
  if (n)
    life->device->model->stores(life->state, life->stores, n);
}

static struct word *find_word(struct life *life, unsigned bar, uint64_t offset, unsigned size) {
  for (size_t i = 0; i < life->n_words; i++) {
    struct word *word = &life->words[i];
    if (word->bar == bar && word->offset < offset + size && offset < word->offset + word->size) {
      assert(word->offset == offset && word->size == size);
      return word;
    }
  }
  return NULL;
}

/* The model stored `value`. If what was there before is not what was last seen, a client stored it
 * and no scan has met it: it is gone from the memory, but not lost. */
static void take_store(struct life *life, struct word *word, uint64_t before, uint64_t value) {
  struct chunk *chunk = &life->chunks[word->chunk];
  if (before != part_of(chunk->seen, word)) {
    life->n_missed += !word->has_missed;
    word->missed = before;
    word->has_missed = 1;
  }
  set_part(&chunk->loaded, word, value);
  set_part(&chunk->seen, word, value);
}

/* Room for one more than n items; NULL: no memory, and all is as before. */
static void *grown(const void *items, size_t n, size_t size) {
  void *more = alloc_array(n + 1, size);
  if (more && n)
    memcpy(more, items, n * size);
  return more;
}

/* The chunk for a word that is watched last. Two words that lie in eight bytes are loaded in one,
 * unless another was watched in between: that is to be loaded between them. NULL: no memory. */
static struct chunk *chunk_for(struct life *life, const struct word *word) {
  const uint64_t *at = (const uint64_t *)((uintptr_t)word->memory & ~(uintptr_t)7);
  struct chunk *chunks;
  if (life->n_chunks && life->chunks[life->n_chunks - 1].memory == at)
    return &life->chunks[life->n_chunks - 1];
  if (!(chunks = grown(life->chunks, life->n_chunks, sizeof *chunks)))
    return NULL;
  alloc_free(life->chunks);
  life->chunks = chunks;
  chunks[life->n_chunks] = (struct chunk){.memory = at, .first_word = life->n_words};
  return &chunks[life->n_chunks++];
}

static int add_word(struct life *life, const struct word *word) {
  struct word *words = grown(life->words, life->n_words, sizeof *words);
  struct iommufs_store *stores = alloc_array(life->n_words + 1, sizeof *stores);
  struct chunk *chunk = words && stores ? chunk_for(life, word) : NULL;
  if (!chunk) {
    alloc_free(words);
    alloc_free(stores);
    return -ENOMEM;
  }
  alloc_free(life->words);
  alloc_free(life->stores);
  life->words = words;
  life->stores = stores;
  words[life->n_words] = *word;
  words[life->n_words++].chunk = (size_t)(chunk - life->chunks);
  chunk->n_words++;
  chunk->mask |= mask_of(word);
  set_part(&chunk->seen, word, load(word->memory, word->size));
  return 0;
}

int life_watch(struct iommufs_device *handle, unsigned bar, uint64_t offset, unsigned size) {
  struct life *life = life_of(handle);
  int err;
  pthread_mutex_lock(&life->device->lock);
  unsigned char *memory = place(life, bar, offset, size);
  err = memory ? add_word(life, &(struct word){.memory = memory,
                                               .offset = offset,
                                               .bar = bar,
                                               .size = size})
               : -ECANCELED;
  pthread_mutex_unlock(&life->device->lock);
  return err;
}

void life_store(struct iommufs_device *handle, unsigned bar, uint64_t offset, unsigned size,
                uint64_t value) {
  struct life *life = life_of(handle);
  pthread_mutex_lock(&life->device->lock);
  unsigned char *memory = place(life, bar, offset, size);
  if (memory) {
    struct word *word = find_word(life, bar, offset, size);
    uint64_t before = exchange(memory, size, value);
    if (word)
      take_store(life, word, before, value);
  }
  pthread_mutex_unlock(&life->device->lock);
}

uint64_t life_exchange(struct iommufs_device *handle, unsigned bar, uint64_t offset, unsigned size,
                       uint64_t value) {
  struct life *life = life_of(handle);
  uint64_t before = 0;
  pthread_mutex_lock(&life->device->lock);
  unsigned char *memory = place(life, bar, offset, size);
  if (memory) {
    struct word *word = find_word(life, bar, offset, size);
    before = exchange(memory, size, value);
    if (word) { /* whatever was there, the model is told of it now */
      set_part(&life->chunks[word->chunk].seen, word, before);
      take_store(life, word, before, value);
    }
  }
  pthread_mutex_unlock(&life->device->lock);
  return before;
}

uint64_t life_load(struct iommufs_device *handle, unsigned bar, uint64_t offset, unsigned size) {
  struct life *life = life_of(handle);
  pthread_mutex_lock(&life->device->lock);
  const unsigned char *memory = place(life, bar, offset, size);
  uint64_t value = memory ? load(memory, size) : 0;
  pthread_mutex_unlock(&life->device->lock);
  return value;
}

/* ---- the thread ------------------------------------------------------------------------------- */

void life_wake(struct life *life) {
  life->woken = 1;
  pthread_cond_signal(&life->wake);
}

/* With the lock held: until it is time to look again. `idle`: how long there was no work. */
static void back_off(struct life *life, uint64_t now, uint64_t idle) {
  uint64_t sleep = idle / IDLE_PART < MAX_SLEEP_NS ? idle / IDLE_PART : MAX_SLEEP_NS;
  struct timespec until = time_of(now + sleep);
  if (!life->woken && !life->ended)
    pthread_cond_timedwait(&life->wake, &life->device->lock, &until);
}

/* Look a little longer before the kernel is asked to run somebody else, which takes as long as a
 * client takes to answer a completion. With the lock held. */
static int look_again(struct life *life) {
  for (int i = 0; i < LOOKS && !life->device->n_visitors && !life->ended; i++) {
    if (load_chunks(life))
      return 1;
    pause_a_moment();
  }
  return 0;
}

static void give_way(int crowded) {
  const struct timespec nap = {0, NAP_NS};
  if (crowded)
    nanosleep(&nap, NULL);
  else
    sched_yield();
}

/* Until *crowded the machine has more to do than cores. */
static void let_others_in(struct iofs_device *device, uint64_t now, uint64_t *crowded) {
  pthread_mutex_unlock(&device->lock);
  do
    give_way(now < *crowded);
  while (device->n_visitors);
  uint64_t after = now_ns();
  if (after - now > CROWDED_NS)
    *crowded = after + CROWD_NS;
  pthread_mutex_lock(&device->lock);
}

/* Look for work and do it, until the life ends. With the lock held. */
static void work(struct life *life) {
  struct iofs_device *device = life->device;
  uint64_t last_work = now_ns(), crowded = 0;
  while (!life->ended) {
    life_scan(life);
    int busy = life->woken;
    life->woken = 0;
    pthread_mutex_unlock(&device->lock);
    busy |= device->model->poll(life->state) != 0;
    device_dma_rest(life);
    pthread_mutex_lock(&device->lock);
    if (busy && !device->n_visitors) {
      last_work = 0;
      continue;
    }
    uint64_t now = now_ns();
    if (busy || !last_work)
      last_work = now;
    if (now - last_work < SPIN_NS) {
      if (!look_again(life))
        let_others_in(device, now, &crowded);
    } else
      back_off(life, now, now - last_work);
  }
}

static void discard(struct life *life) {
  if (life->route)
    iofs_route_put(life->route);
  pthread_cond_destroy(&life->wake);
  alloc_free(life->words);
  alloc_free(life->stores);
  alloc_free(life->chunks);
  alloc_free(life);
}

/* struct sched_attr (sched_setattr(2)), which glibc has from 2.41 on. */
struct schedule {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t slice_ns, deadline, period;
};

/* Little at a time and soon, rather than much and late. From Linux 6.12 on; before, and where that
 * is forbidden, it is as for everybody. */
static void be_punctual(void) {
  struct schedule schedule;
  if (!syscall(SYS_sched_getattr, 0, &schedule, sizeof schedule, 0) &&
      schedule.policy == SCHED_OTHER) {
    schedule.slice_ns = SLICE_NS;
    syscall(SYS_sched_setattr, 0, &schedule, 0);
  }
  prctl(PR_SET_TIMERSLACK, 1000);
}

static void *run(void *life_) {
  struct life *life = life_;
  struct iofs_device *device = life->device;
  be_punctual();
  pthread_mutex_lock(&device->lock);
  life->thread = (pid_t)syscall(SYS_gettid);
  work(life);
  pthread_mutex_unlock(&device->lock);
  device->model->end(life->state);
  device_dma_rest(life);
  pthread_mutex_lock(&device->lock);
  if (life->finished) { /* who waits has the device, and frees the life */
    *life->finished = 1;
    device_put(device);
    pthread_cond_broadcast(&life->wake);
    pthread_mutex_unlock(&device->lock);
    return NULL;
  }
  device->n_left_behind--;
  pthread_mutex_unlock(&device->lock);
  discard(life);
  device_put(device);
  return NULL;
}

static int start_thread(struct life *life) {
  pthread_attr_t attr;
  sigset_t all, before;
  pthread_t thread;
  pthread_attr_init(&attr);
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attr, 512 << 10);
  sigfillset(&all);
  sigdelset(&all, SIGBUS); /* guard.c: a client's file may end while we copy */
  pthread_sigmask(SIG_SETMASK, &all, &before); /* the others are for the program's own threads */
  int err = pthread_create(&thread, &attr, run, life);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attr);
  return -err;
}

int life_begin(struct iofs_device *device) {
  struct life *life;
  if (device->n_left_behind == MAX_LEFT_BEHIND)
    return -EAGAIN;
  if (!(life = alloc_zeroed(sizeof *life)))
    return -ENOMEM;
  life->handle.calls = &device_calls;
  life->device = device;
  if ((life->route = device->route))
    route_get(life->route);
  init_cond(&life->wake);
  life->state = device->model->start(device->instance, &life->handle);
  if (!life->state) {
    discard(life);
    return -ENOMEM;
  }
  device->refs++;
  int err = start_thread(life);
  if (err) {
    device->model->end(life->state);
    device->refs--;
    discard(life);
    return err;
  }
  device->life = life;
  return 0;
}

/* With the lock held. */
static void wait_for_end(struct life *life, const int *finished) {
  uint64_t end = now_ns() + PATIENCE_NS, now;
  while (!*finished && (now = now_ns()) < end) {
    struct timespec until = time_of(now + LOOK_NS);
    if (pthread_cond_timedwait(&life->wake, &life->device->lock, &until) && !*finished &&
        is_kept_waiting(life->thread))
      break;
  }
}

void life_stop(struct iofs_device *device) {
  struct life *life = device->life;
  int finished = 0;
  if (!life)
    return;
  device->life = NULL;
  life->ended = 1;
  device_drop_line(device);
  device_events_drop_pages(device);
  life->finished = &finished;
  life_wake(life);
  wait_for_end(life, &finished);
  if (finished)
    discard(life);
  else {
    life->finished = NULL;
    device->n_left_behind++;
  }
}
