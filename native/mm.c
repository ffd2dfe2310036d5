/* Handles on client address spaces (see mm.h). */
#define _GNU_SOURCE
#include "mm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "alloc.h"
#include "stats.h"

#define N_BUCKETS 256
#define MAX_FORBIDDEN 64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct iofs_mm *buckets[N_BUCKETS];
static struct {
  uint32_t major, minor;
} forbidden[MAX_FORBIDDEN];
static unsigned n_forbidden;

static int open_error(void) {
  switch (errno) {
  case ENOENT:
  case ENOTDIR:
  case ESRCH:
    return -ESRCH;
  case EACCES:
    return -EPERM;
  case EMFILE: /* ours, of which the client knows nothing */
  case ENFILE:
    return -ENOMEM;
  default:
    return -errno;
  }
}

static ssize_t read_auxv(int dir, unsigned char *auxv, size_t size) {
  int fd = openat(dir, "auxv", O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return open_error();
  ssize_t got = pread(fd, auxv, size, 0);
  close(fd);
  return got > 0 ? got : -ESRCH;
}

static int open_dir(int tid) {
  char path[32];
  snprintf(path, sizeof path, "/proc/%d", tid);
  int dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  return dir < 0 ? open_error() : dir;
}

ssize_t mm_auxv_of(int tid, unsigned char *auxv, size_t size) {
  int dir = open_dir(tid);
  if (dir < 0)
    return dir;
  ssize_t got = read_auxv(dir, auxv, size);
  close(dir);
  return got;
}

static void close_files(const struct iofs_mm *mm) {
  close(mm->mem_fd);
  close(mm->maps_fd);
}

static int open_files(int dir, struct iofs_mm *mm) {
  unsigned char again[sizeof mm->auxv];
  mm->mem_fd = openat(dir, "mem", O_RDWR | O_CLOEXEC);
  if (mm->mem_fd < 0)
    return open_error();
  mm->maps_fd = openat(dir, "maps", O_RDONLY | O_CLOEXEC);
  if (mm->maps_fd < 0) {
    int err = open_error();
    close(mm->mem_fd);
    return err;
  }
  /* Both files, and what names them, must be of one address space: no exec in between. */
  if (read_auxv(dir, again, sizeof again) == (ssize_t)mm->auxv_size &&
      !memcmp(again, mm->auxv, mm->auxv_size))
    return 0;
  close_files(mm);
  return -ESRCH;
}

/* Who a thread of a client is, by what cannot be another's while it waits for us. */
struct thread {
  int tgid, tid, dir;
  size_t auxv_size;
  unsigned char auxv[sizeof ((struct iofs_mm *)0)->auxv];
  const unsigned char *secret;
};

/* Processes that share memory have one auxiliary vector, so one bucket. */
static struct iofs_mm **bucket_of(const unsigned char *auxv, size_t size) {
  uint64_t hash = 0, word;
  for (size_t at = 0; at + sizeof word <= size; at += sizeof word) {
    memcpy(&word, auxv + at, sizeof word);
    hash = (hash ^ word) * 0x9e3779b97f4a7c15;
  }
  return &buckets[(hash >> 32) % N_BUCKETS];
}

static int is_known(const struct iofs_mm *mm, const unsigned char *secret) {
  return !mm->secret_at || (secret && mm_is_secret(mm, secret));
}

/* As a thread of a forked process does, too. */
static int looks_like(const struct thread *thread, const struct iofs_mm *mm) {
  return mm->auxv_size == thread->auxv_size &&
         !memcmp(mm->auxv, thread->auxv, thread->auxv_size) && is_known(mm, thread->secret) &&
         iofs_mm_alive(mm);
}

/* Under the lock. */
static struct iofs_mm *find(const struct thread *thread) {
  struct iofs_mm *first = *bucket_of(thread->auxv, thread->auxv_size), *mm;
  for (mm = first; mm; mm = mm->next)
    if (mm_has_user(mm, thread->tgid) && looks_like(thread, mm))
      return mm;
  for (mm = first; mm; mm = mm->next)
    if (looks_like(thread, mm) && mm_is_shared_with(mm, thread->tid))
      return mm;
  return NULL;
}

/* Under the lock. */
static int add(const struct thread *thread, struct iofs_mm **out) {
  struct iofs_mm *mm = alloc_zeroed(sizeof *mm);
  if (!mm)
    return -ENOMEM;
  mm->refs = 1;
  mm->process = thread->tid;
  mm->auxv_size = thread->auxv_size;
  memcpy(mm->auxv, thread->auxv, thread->auxv_size);
  if (thread->secret && (mm->secret_at = mm_secret_at(mm->auxv, mm->auxv_size)))
    memcpy(mm->secret, thread->secret, sizeof mm->secret);
  int err = open_files(thread->dir, mm);
  if (!err && (err = mm_add_user(mm, thread->tgid)))
    close_files(mm);
  if (err) {
    alloc_free(mm);
    return err;
  }
  mm_add_parents(mm, thread->tid);
  struct iofs_mm **bucket = bucket_of(mm->auxv, mm->auxv_size);
  mm->next = *bucket;
  *bucket = mm;
  stats.mms++;
  *out = mm;
  return 0;
}

/* Under the lock. */
static int find_or_add(const struct thread *thread, struct iofs_mm **out) {
  struct iofs_mm *mm = find(thread);
  if (!mm)
    return add(thread, out);
  int err = mm_add_user(mm, thread->tgid);
  if (err)
    return err;
  mm_find_process(mm);
  mm->refs++;
  *out = mm;
  return 0;
}

int iofs_mm_open(int tgid, int tid, const void *secret, struct iofs_mm **out) {
  struct thread thread = {.tgid = tgid, .tid = tid, .secret = secret};
  if ((thread.dir = open_dir(tid)) < 0)
    return thread.dir;
  ssize_t size = read_auxv(thread.dir, thread.auxv, sizeof thread.auxv);
  int err = size < 0 ? (int)size : 0;
  if (!err) {
    thread.auxv_size = (size_t)size;
    pthread_mutex_lock(&lock);
    err = find_or_add(&thread, out);
    pthread_mutex_unlock(&lock);
  }
  close(thread.dir);
  return err;
}

uint64_t iofs_mm_secret_at(const struct iofs_mm *mm) { return mm->secret_at; }

uint64_t iofs_secret_at(int tid) {
  unsigned char auxv[sizeof ((struct iofs_mm *)0)->auxv];
  ssize_t size = mm_auxv_of(tid, auxv, sizeof auxv);
  return size > 0 ? mm_secret_at(auxv, (size_t)size) : 0;
}

int iofs_mm_has(struct iofs_mm *mm, int tgid) {
  pthread_mutex_lock(&lock);
  int has = mm_has_user(mm, tgid) && iofs_mm_alive(mm);
  pthread_mutex_unlock(&lock);
  return has;
}

int iofs_mm_runs(struct iofs_mm *mm, int tgid, const void *secret) {
  return iofs_mm_has(mm, tgid) &&
         (mm->secret_at ? secret && mm_is_secret(mm, secret) : mm_may_run(mm, tgid));
}

int mm_look_again(struct iofs_mm *mm) {
  pthread_mutex_lock(&lock);
  int is_another = mm_find_process(mm);
  pthread_mutex_unlock(&lock);
  return is_another;
}

void iofs_mm_get(struct iofs_mm *mm) {
  pthread_mutex_lock(&lock);
  mm->refs++;
  pthread_mutex_unlock(&lock);
}

void iofs_mm_put(struct iofs_mm *mm) {
  pthread_mutex_lock(&lock);
  int gone = !--mm->refs;
  if (gone) {
    struct iofs_mm **link = bucket_of(mm->auxv, mm->auxv_size);
    while (*link != mm)
      link = &(*link)->next;
    *link = mm->next;
  }
  pthread_mutex_unlock(&lock);
  if (!gone)
    return;
  close_files(mm);
  mm_forget_users(mm);
  alloc_free(mm);
  stats.mms--;
}

void iofs_mm_forbid_device(uint32_t major, uint32_t minor) {
  pthread_mutex_lock(&lock);
  if (n_forbidden < MAX_FORBIDDEN) {
    forbidden[n_forbidden].major = major;
    forbidden[n_forbidden++].minor = minor;
  }
  pthread_mutex_unlock(&lock);
}

int mm_is_forbidden(uint32_t major, uint32_t minor) {
  int found = 0;
  pthread_mutex_lock(&lock);
  for (unsigned i = 0; i < n_forbidden && !found; i++)
    found = forbidden[i].major == major && forbidden[i].minor == minor;
  pthread_mutex_unlock(&lock);
  return found;
}
