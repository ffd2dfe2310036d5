/*
 * Who reads /dev/fuse (see readers.h).
 *
 * To pass the turn on before each touch of a client's memory would wake a thread for each ioctl. So
 * a reader that leaves keeps its turn, and another one, the watcher, looks once a tick whether it is
 * still away at the same touch; then it takes the turn from it. If it was the client's memory that
 * kept it, readers are careful for a while and do pass the turn on before, so that a client that
 * does it again and again delays others once a second, not once a call. While there is nothing to
 * watch the watcher sleeps.
 *
 * A reader that is not beside its client (placement.c) and finds no request asks again for some
 * microseconds before it sleeps, as long as that has paid lately.
 */
#define _GNU_SOURCE
#include "readers.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fuse_wire.h"
#include "job.h"
#include "placement.h"
#include "pm_qos.h"
#include "transport.h"

#define MAX_READERS 256
#define MAX_WAITING 4 /* more of them end */
#define TICK_NS 1000000ull
#define CAREFUL_NS 1000000000ull

#define QUIET_MS 10 /* without a request: nobody calls any more */
#define SPIN_NS 50000ull        /* how long it may ask again */
#define SHORT_SLEEP_NS 100000ull /* asking a little longer would have paid */
#define MAX_MISSES 8          /* of requests that came just after the asking: the cores are busy */
#define REST 256              /* requests without asking after that */

/* READING: has the turn; AWAY: has it still, unless it is taken; STOLEN: it was. */
enum state { READING, AWAY, STOLEN };

struct reader {
  _Atomic int state;
  _Atomic uint64_t n_left; /* how often it left */
  _Atomic int in_memory;   /* a client's, while it is away: not in Python */
  pid_t tid;
  void *buf;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what is not atomic */
static pthread_cond_t all_gone = PTHREAD_COND_INITIALIZER;
static pthread_cond_t next_watcher = PTHREAD_COND_INITIALIZER;
static pthread_cond_t to_watcher; /* CLOCK_MONOTONIC, see init() */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct reader *holder, *watcher;
static _Thread_local struct reader *self;
static unsigned n_readers;
static _Atomic unsigned n_waiting; /* for their turn, the watcher among them */
static _Atomic int stopping, ended, asleep;
static _Atomic uint64_t careful_until;

static int fuse_fd, stop_fd;
static readers_handle *handle;
static void (*on_end)(void);

static struct { /* of whose turn it is */
  int never; /* the other side has no processor of its own */
  uint64_t limit;
  unsigned misses, rest;
} spin;

static void *run(void *unused);

static void init(void) {
  pthread_condattr_t attr;
  pthread_condattr_init(&attr);
  pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
  pthread_cond_init(&to_watcher, &attr);
  pthread_condattr_destroy(&attr);
}

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int is_over(void) { return stopping || ended; }

/* ---- turns ----------------------------------------------------------------------------------- */

/* Whether a thread of ours waits for something, rather than for a processor. */
static int sleeps(pid_t tid) {
  char path[48], line[256], state = 'R';
  snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
  FILE *file = fopen(path, "re");
  if (!file)
    return 0;
  if (fgets(line, sizeof line, file)) {
    const char *after_name = strrchr(line, ')');
    if (after_name)
      sscanf(after_name, ") %c", &state);
  }
  fclose(file);
  return state != 'R';
}

/* A tick is over, in which the holder did not come back from where it had been before: 1 if the turn
 * is the watcher's now. */
static int steal(void) {
  int away = AWAY;
  int stuck = holder->in_memory && sleeps(holder->tid);
  if (!atomic_compare_exchange_strong(&holder->state, &away, STOLEN))
    return 0;
  if (stuck)
    careful_until = now_ns() + CAREFUL_NS;
  holder = NULL;
  return 1;
}

/* Until the turn is free. With the lock. */
static void watch(void) {
  const struct reader *who = NULL;
  uint64_t n_left = 0, until;
  while (holder && !is_over()) {
    until = now_ns() + TICK_NS;
    struct timespec then = {(time_t)(until / 1000000000), (long)(until % 1000000000)};
    if (who == holder && n_left == holder->n_left && holder->state == READING) {
      asleep = 1; /* nothing came in the last tick */
      if (n_left == holder->n_left)
        pthread_cond_wait(&to_watcher, &lock);
      asleep = 0;
      who = NULL;
    } else if (who == holder && n_left == holder->n_left && steal()) {
      return;
    } else {
      who = holder;
      n_left = holder->n_left;
      pthread_cond_timedwait(&to_watcher, &lock, &then);
    }
  }
}

/* 1: it is this reader's turn; 0: it is to end. */
static int take_turn(struct reader *me) {
  pthread_mutex_lock(&lock);
  int mine = n_waiting < MAX_WAITING;
  n_waiting += mine;
  while (mine && watcher && !is_over())
    pthread_cond_wait(&next_watcher, &lock);
  if (mine) {
    if (!watcher) {
      watcher = me;
      watch();
      watcher = NULL;
      pthread_cond_signal(&next_watcher);
    }
    n_waiting--;
    mine = !is_over() && !holder;
  }
  if (mine) {
    me->state = READING;
    holder = me;
  }
  pthread_mutex_unlock(&lock);
  return mine;
}

static void pass_turn_on(struct reader *me) {
  pthread_mutex_lock(&lock);
  if (holder == me) {
    me->state = STOLEN;
    holder = NULL;
  }
  pthread_cond_signal(&to_watcher);
  pthread_mutex_unlock(&lock);
}

/* 1: it still has the turn. */
static int come_back(struct reader *me) {
  int away = AWAY;
  return me->state == READING || atomic_compare_exchange_strong(&me->state, &away, READING);
}

static int start_reader(void) {
  pthread_t thread;
  pthread_mutex_lock(&lock);
  int room = n_readers < MAX_READERS;
  n_readers += room;
  pthread_mutex_unlock(&lock);
  if (!room)
    return -EAGAIN;
  int err = -pthread_create(&thread, NULL, run, NULL);
  if (!err) {
    pthread_detach(thread);
    return 0;
  }
  pthread_mutex_lock(&lock);
  n_readers--;
  pthread_mutex_unlock(&lock);
  return err;
}

void reader_touches_memory(struct reader *me) {
  me->n_left++;
  me->in_memory = 1;
}

void reader_is_back(struct reader *me) { me->in_memory = 0; }

void readers_step_aside(void) {
  if (self && self->state == AWAY)
    pass_turn_on(self);
}

int reader_leave(struct reader *me) {
  if (!n_waiting && start_reader())
    return 0;
  if (careful_until && careful_until > now_ns()) {
    pass_turn_on(me);
    return 1;
  }
  reader_touches_memory(me);
  me->state = AWAY;
  if (atomic_exchange(&asleep, 0)) {
    pthread_mutex_lock(&lock);
    pthread_cond_signal(&to_watcher);
    pthread_mutex_unlock(&lock);
  }
  return 1;
}

/* ---- requests -------------------------------------------------------------------------------- */

/* As read(2), but a request that was taken back is none. */
static ssize_t read_request(void *buf) {
  for (;;) {
    ssize_t n = read(fuse_fd, buf, IOFS_MAX_REQUEST);
    if (n > 0)
      return n;
    if (n == 0) /* the keeper is gone, and the connection with it */
      return -ENODEV;
    if (errno != ENOENT && errno != EINTR)
      return -errno;
  }
}

/* What the last wait teaches about the next. found: while asking. */
static void learn(int found, uint64_t waited) {
  if (spin.never)
    return;
  if (spin.rest) {
    spin.rest--;
  } else if (found) {
    spin.misses = 0;
  } else if (waited > SHORT_SLEEP_NS) {
    spin.limit = 0;
  } else if (!spin.limit) {
    spin.limit = SPIN_NS;
  } else if (++spin.misses > MAX_MISSES) {
    spin.limit = spin.misses = 0;
    spin.rest = REST;
  }
}

/* Meanwhile it does jobs for Python. EINTR: the turn was lost over one. */
static ssize_t ask_again(struct reader *me, uint64_t start) {
  ssize_t n = -EAGAIN;
  if (!spin.limit || placement_is_beside())
    return n;
  jobs_attend(1);
  while (n == -EAGAIN && now_ns() - start < spin.limit) {
    if (jobs_are_queued() && reader_leave(me)) {
      jobs_help();
      if (!come_back(me)) {
        n = -EINTR;
        break;
      }
    }
    n = read_request(me->buf);
  }
  jobs_attend(0);
  return n;
}

/* Until one of them can be read. What was arranged for quick answers ends when nobody asks. */
static void wait_for(struct pollfd fds[2]) {
  int quick = placement_is_beside() || pm_qos_is_held(), n;
  while ((n = poll(fds, 2, quick ? QUIET_MS : -1)) <= 0)
    if (n == 0) {
      placement_leave();
      pm_qos_release();
      quick = 0;
    }
}

/* A request, or -errno; ENODEV when the mount is gone. */
static ssize_t next_request(struct reader *me) {
  void *buf = me->buf;
  struct pollfd fds[2] = {{fuse_fd, POLLIN, 0}, {stop_fd, POLLIN, 0}};
  ssize_t n = read_request(buf);
  if (n != -EAGAIN)
    return n;
  uint64_t start = now_ns();
  n = ask_again(me, start);
  int found = n != -EAGAIN;
  while (n == -EAGAIN) {
    wait_for(fds);
    if (fds[1].revents)
      return -ENODEV;
    n = read_request(buf);
  }
  learn(found, now_ns() - start);
  return n;
}

/* Where two cores are awake, the client and a reader that asks again take one each; where others want
 * them, they share one. */
static void note(int client) {
  pm_qos_note();
  if (pm_qos_is_held() && !spin.rest)
    placement_leave();
  else
    placement_note(client);
}

static void read_and_handle(struct reader *me) {
  ssize_t n = next_request(me);
  if (n >= 0) {
    int client = (int)((const struct fuse_in_header *)me->buf)->pid;
    handle(me, me->buf, (size_t)n);
    if (come_back(me))
      note(client);
  } else if (n != -EINTR) {
    ended = 1;
    on_end();
  }
}

static void *run(void *unused) {
  struct reader me = {.tid = gettid(), .buf = malloc(IOFS_MAX_REQUEST)};
  sigset_t all;
  (void)unused;
  sigfillset(&all);
  sigdelset(&all, SIGBUS); /* guard.c: a client's file may end while we copy */
  pthread_sigmask(SIG_BLOCK, &all, NULL); /* Python's main thread has the others */
  self = &me;
  while (me.buf && take_turn(&me)) {
    do
      read_and_handle(&me);
    while (!is_over() && come_back(&me));
    if (is_over())
      pass_turn_on(&me);
  }
  free(me.buf);
  pthread_mutex_lock(&lock);
  n_readers--;
  pthread_cond_broadcast(&all_gone);
  pthread_cond_broadcast(&next_watcher);
  pthread_mutex_unlock(&lock);
  return NULL;
}

static int n_processors(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) ? 2 : CPU_COUNT(&set);
}

int readers_start(int fuse, int stop, readers_handle *handler, void (*end)(void)) {
  pthread_once(&once, init);
  fuse_fd = fuse;
  stop_fd = stop;
  handle = handler;
  on_end = end;
  stopping = ended = 0;
  careful_until = 0;
  memset(&spin, 0, sizeof spin);
  spin.never = n_processors() == 1;
  return start_reader();
}

void readers_stop(unsigned seconds) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += seconds;
  pthread_once(&once, init);
  pthread_mutex_lock(&lock);
  stopping = 1;
  pthread_cond_broadcast(&to_watcher);
  pthread_cond_broadcast(&next_watcher);
  while (n_readers && pthread_cond_timedwait(&all_gone, &lock, &until) != ETIMEDOUT)
    ;
  if (holder) { /* it is in a client's stuck page, and joins the next mount's readers at best */
    holder->state = STOLEN;
    holder = NULL;
  }
  pm_qos_release();
  pthread_mutex_unlock(&lock);
}
