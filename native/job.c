/*
 * A pool of threads for work that may have to wait for a client's memory.
 *
 * A thread that is stuck in a client's page is lost until the client resolves it or dies, so the
 * pool grows whenever work comes in and nobody is idle; surplus threads end. A reader of the transport
 * that asks for requests anyway takes jobs meanwhile, which wakes nobody. States of a job:
 * NEW → QUEUED → RUNNING → DONE, all changes under `lock`; a reader that visits Python runs a NEW one
 * itself. PARKED: its waiter gave up waiting and wants to find it in the done list. ORPHAN: nobody
 * wants it any more.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "iommufs.h"
#include "job.h"

/* Beyond this many stuck threads, work queues up: what is left to a client that parks them all. */
#define MAX_THREADS 512
#define MAX_IDLE 4
#define SPINS 200 /* before a wait: what a helper needs for a small job */

enum kind {
  CLIENT_READ,
  CLIENT_WRITE,
  DMA_READ,
  DMA_WRITE,
  DMA_READ_SPANS,
  DMA_WRITE_SPANS,
  ACCESS_READ,
  ACCESS_WRITE
};
enum state { NEW, QUEUED, RUNNING, DONE };

struct iofs_job {
  struct iofs_job *next; /* in the queue, or in the done list */
  enum kind kind;
  _Atomic enum state state;
  int awaited, parked, orphan, tid;
  struct iofs_domain *domain;
  struct iofs_access *access;
  uint64_t address;
  size_t length;
  int64_t result;
  struct iofs_dma_fault fault;
  size_t n_spans; /* then come the spans, their faults, their bytes; else the bytes alone */
  _Alignas(uint64_t) unsigned char data[];
};

struct span {
  uint64_t iova, length;
};

struct list {
  struct iofs_job *first, **tail;
};

_Atomic uint64_t iofs_live_jobs;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work_added = PTHREAD_COND_INITIALIZER;
static pthread_cond_t job_done; /* CLOCK_MONOTONIC, see init() */
static struct list queue = {0, &queue.first};
static struct list done = {0, &done.first};
static unsigned n_threads, n_idle, n_helpers;
static _Atomic unsigned n_queued;
static int done_fd = -1;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init(void) {
  pthread_condattr_t attr;
  pthread_condattr_init(&attr);
  pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
  pthread_cond_init(&job_done, &attr);
  pthread_condattr_destroy(&attr);
  done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
}

static void list_push(struct list *list, struct iofs_job *job) {
  job->next = NULL;
  *list->tail = job;
  list->tail = &job->next;
}

static struct iofs_job *list_pop(struct list *list) {
  struct iofs_job *job = list->first;
  if (job && !(list->first = job->next))
    list->tail = &list->first;
  return job;
}

/* 1 if the job was in the list. */
static int list_remove(struct list *list, struct iofs_job *job) {
  for (struct iofs_job **at = &list->first; *at; at = &(*at)->next)
    if (*at == job) {
      *at = job->next;
      if (!*at)
        list->tail = at;
      return 1;
    }
  return 0;
}

static void destroy(struct iofs_job *job) {
  if (job->domain)
    iofs_domain_put(job->domain);
  if (job->access)
    iofs_access_put(job->access);
  free(job);
  iofs_live_jobs--;
}

static struct span *spans_of(const struct iofs_job *job) { return (struct span *)job->data; }

static struct iofs_dma_fault *faults_of(const struct iofs_job *job) {
  return (struct iofs_dma_fault *)(spans_of(job) + job->n_spans);
}

static unsigned char *bytes_of(const struct iofs_job *job) {
  return (unsigned char *)(faults_of(job) + job->n_spans);
}

static int64_t run_spans(struct iofs_job *job) {
  const struct span *spans = spans_of(job);
  struct iofs_dma_fault *faults = faults_of(job);
  unsigned char *at = bytes_of(job);
  int64_t n_refused = 0;
  for (size_t i = 0; i < job->n_spans; at += spans[i++].length) {
    uint64_t iova = spans[i].iova, length = spans[i].length;
    int err = job->kind == DMA_WRITE_SPANS
                  ? iofs_dma_write(job->domain, iova, at, length, &faults[i])
                  : iofs_dma_read(job->domain, iova, at, length, &faults[i]);
    if (err && faults[i].reason == IOFS_DMA_OK)
      return err;
    n_refused += err != 0;
  }
  return n_refused;
}

static int64_t run(struct iofs_job *job) {
  switch (job->kind) {
  case CLIENT_READ:
    return iofs_client_read(job->tid, job->address, job->data, job->length);
  case CLIENT_WRITE:
    return iofs_client_write(job->tid, job->address, job->data, job->length);
  case DMA_READ:
    return iofs_dma_read(job->domain, job->address, job->data, job->length, &job->fault);
  case DMA_WRITE:
    return iofs_dma_write(job->domain, job->address, job->data, job->length, &job->fault);
  case DMA_READ_SPANS:
  case DMA_WRITE_SPANS:
    return run_spans(job);
  case ACCESS_READ:
  case ACCESS_WRITE:
    return iofs_access_rw(job->access, job->address, job->data, job->length,
                          job->kind == ACCESS_WRITE);
  }
  abort();
}

/* With the lock, which it gives back meanwhile: 1 if the job is neither parked nor an orphan. */
static int carry_out(struct iofs_job *job) {
  pthread_mutex_unlock(&lock);
  int64_t result = run(job);
  pthread_mutex_lock(&lock);
  job->result = result;
  job->state = DONE;
  if (job->orphan) {
    destroy(job);
    return 0;
  }
  if (job->parked) {
    list_push(&done, job);
    eventfd_write(done_fd, 1);
    return 0;
  }
  if (job->awaited)
    pthread_cond_broadcast(&job_done);
  return 1;
}

/* Likewise, of one that was queued. */
static void carry_out_queued(struct iofs_job *job) {
  n_queued--;
  job->state = RUNNING;
  carry_out(job);
}

void job_claim(struct iofs_job *job) {
  pthread_mutex_lock(&lock);
  assert(job->state == NEW);
  job->state = RUNNING;
  pthread_mutex_unlock(&lock);
}

int job_run(struct iofs_job *job) {
  pthread_mutex_lock(&lock);
  int wanted = carry_out(job);
  pthread_mutex_unlock(&lock);
  return wanted;
}

static void *worker(void *unused) {
  sigset_t all;
  (void)unused;
  sigfillset(&all);
  sigdelset(&all, SIGBUS); /* guard.c: a client's file may end while we copy */
  pthread_sigmask(SIG_BLOCK, &all, NULL); /* Python's main thread has the others */
  pthread_mutex_lock(&lock);
  for (;;) {
    struct iofs_job *job = list_pop(&queue);
    if (!job) {
      if (n_idle >= MAX_IDLE)
        break;
      n_idle++;
      pthread_cond_wait(&work_added, &lock);
      n_idle--;
      continue;
    }
    carry_out_queued(job);
  }
  n_threads--;
  pthread_mutex_unlock(&lock);
  return NULL;
}

/* With the lock held. Without a thread the job stays queued until one gets free. */
static void grow(void) {
  pthread_t thread;
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attr, 128 << 10);
  if (!pthread_create(&thread, &attr, worker, NULL))
    n_threads++;
  pthread_attr_destroy(&attr);
}

/* With the lock. */
static void call_worker(void) {
  if (n_queued > n_idle && n_threads < MAX_THREADS)
    grow();
  pthread_cond_signal(&work_added);
}

static struct iofs_job *make(enum kind kind, uint64_t address, const void *data, size_t length) {
  pthread_once(&once, init);
  struct iofs_job *job = calloc(1, sizeof *job + length);
  if (!job)
    return NULL;
  job->kind = kind;
  job->address = address;
  job->length = length;
  if (data)
    memcpy(job->data, data, length);
  iofs_live_jobs++;
  return job;
}

static void submit(struct iofs_job *job) {
  pthread_mutex_lock(&lock);
  job->state = QUEUED;
  list_push(&queue, job);
  n_queued++;
  if (n_queued > n_helpers)
    call_worker();
  pthread_mutex_unlock(&lock);
}

void jobs_attend(int present) {
  pthread_mutex_lock(&lock);
  n_helpers += present ? 1 : -1;
  if (!present && n_queued > n_helpers) /* what it was thought to do */
    call_worker();
  pthread_mutex_unlock(&lock);
}

int jobs_are_queued(void) { return atomic_load_explicit(&n_queued, memory_order_relaxed) > 0; }

void jobs_help(void) {
  pthread_mutex_lock(&lock);
  struct iofs_job *job = list_pop(&queue);
  if (job)
    carry_out_queued(job);
  pthread_mutex_unlock(&lock);
}

struct iofs_job *iofs_job_client_read(int tid, uint64_t address, size_t length) {
  struct iofs_job *job = make(CLIENT_READ, address, NULL, length);
  if (job)
    job->tid = tid;
  return job;
}

struct iofs_job *iofs_job_client_write(int tid, uint64_t address, const void *data, size_t length) {
  struct iofs_job *job = make(CLIENT_WRITE, address, data, length);
  if (job)
    job->tid = tid;
  return job;
}

struct iofs_job *iofs_job_dma(struct iofs_domain *domain, uint64_t iova, const void *data,
                              size_t length) {
  struct iofs_job *job = make(data ? DMA_WRITE : DMA_READ, iova, data, length);
  if (job) {
    iofs_domain_get(domain);
    job->domain = domain;
  }
  return job;
}

struct iofs_job *iofs_job_dma_spans(struct iofs_domain *domain, const void *spans, size_t n,
                                    const void *data, size_t length) {
  size_t head = n * (sizeof(struct span) + sizeof(struct iofs_dma_fault));
  struct iofs_job *job = make(data ? DMA_WRITE_SPANS : DMA_READ_SPANS, 0, NULL, head + length);
  if (!job)
    return NULL;
  job->n_spans = n;
  memcpy(spans_of(job), spans, n * sizeof(struct span));
  uint64_t sum = 0;
  for (size_t i = 0; i < n; i++)
    sum += spans_of(job)[i].length;
  assert(sum == length);
  if (data)
    memcpy(bytes_of(job), data, length);
  iofs_domain_get(domain);
  job->domain = domain;
  return job;
}

struct iofs_job *iofs_job_access_rw(struct iofs_access *access, uint64_t iova, const void *data,
                                    size_t length) {
  struct iofs_job *job = make(data ? ACCESS_WRITE : ACCESS_READ, iova, data, length);
  if (job) {
    iofs_access_get(access);
    job->access = access;
  }
  return job;
}

int iofs_job_wait(struct iofs_job *job, uint32_t microseconds) {
  struct timespec until;
  if (job->state == NEW)
    submit(job);
  for (unsigned i = 0; i < SPINS && job->state != DONE; i++)
    __builtin_ia32_pause();
  clock_gettime(CLOCK_MONOTONIC, &until);
  uint64_t ns = until.tv_nsec + microseconds * 1000ull;
  until.tv_sec += ns / 1000000000;
  until.tv_nsec = ns % 1000000000;
  pthread_mutex_lock(&lock);
  job->awaited = 1;
  while (job->state != DONE && pthread_cond_timedwait(&job_done, &lock, &until) != ETIMEDOUT)
    ;
  int finished = job->state == DONE;
  job->parked = !finished;
  pthread_mutex_unlock(&lock);
  return finished;
}

int iofs_job_done_fd(void) {
  pthread_once(&once, init);
  return done_fd;
}

struct iofs_job *iofs_job_next_done(void) {
  eventfd_t one;
  pthread_mutex_lock(&lock);
  struct iofs_job *job = list_pop(&done);
  if (job)
    eventfd_read(done_fd, &one);
  pthread_mutex_unlock(&lock);
  return job;
}

int64_t iofs_job_result(const struct iofs_job *job) { return job->result; }

const void *iofs_job_data(const struct iofs_job *job) {
  return job->n_spans ? bytes_of(job) : job->data;
}

const struct iofs_dma_fault *iofs_job_fault(const struct iofs_job *job) { return &job->fault; }

const struct iofs_dma_fault *iofs_job_faults(const struct iofs_job *job) { return faults_of(job); }

int64_t iofs_job_free(struct iofs_job *job) {
  int64_t result = job->result;
  eventfd_t one;
  pthread_mutex_lock(&lock);
  if (job->state == RUNNING) {
    job->orphan = 1;
    job = NULL;
  } else if (job->state == QUEUED) {
    list_remove(&queue, job);
    n_queued--;
  } else if (list_remove(&done, job)) {
    eventfd_read(done_fd, &one);
  }
  pthread_mutex_unlock(&lock);
  if (job)
    destroy(job);
  return result;
}
