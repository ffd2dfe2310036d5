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

/* The auxiliary vector of the process that `dir` shows; its size, or -ESRCH for a zombie. */
static ssize_t read_auxv(int dir, unsigned char *auxv, size_t size) {
  int fd = openat(dir, "auxv", O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return open_error();
  ssize_t got = pread(fd, auxv, size, 0);
  close(fd);
  return got > 0 ? got : -ESRCH;
}

static int open_files(int dir, struct iofs_mm *mm) {
  unsigned char again[sizeof mm->auxv];
  mm->mem_fd = openat(dir, "mem", O_RDWR | O_CLOEXEC);
  if (mm->mem_fd < 0)
    return open_error();
  mm->maps_fd = openat(dir, "maps", O_RDONLY | O_CLOEXEC);
  int err = mm->maps_fd < 0 ? open_error() : 0;
  /* Both files, and what names them, must be of one address space: no exec in between. */
  if (!err && (read_auxv(dir, again, sizeof again) != (ssize_t)mm->auxv_size ||
               memcmp(again, mm->auxv, mm->auxv_size)))
    err = -ESRCH;
  if (err) {
    close(mm->mem_fd);
    if (mm->maps_fd >= 0)
      close(mm->maps_fd);
  }
  return err;
}

/* Under the lock. */
static struct iofs_mm *find(int tgid, const unsigned char *auxv, size_t size) {
  struct iofs_mm *mm = buckets[(unsigned)tgid % N_BUCKETS];
  for (; mm; mm = mm->next)
    if (mm->tgid == tgid && mm->auxv_size == size && !memcmp(mm->auxv, auxv, size) &&
        iofs_mm_alive(mm))
      return mm;
  return NULL;
}

/* Under the lock. */
static int find_or_add(int tgid, int dir, struct iofs_mm **out) {
  unsigned char auxv[sizeof (*out)->auxv];
  ssize_t size = read_auxv(dir, auxv, sizeof auxv);
  struct iofs_mm *mm;
  if (size < 0)
    return (int)size;
  if ((mm = find(tgid, auxv, (size_t)size))) {
    mm->refs++;
    *out = mm;
    return 0;
  }
  if (!(mm = alloc_zeroed(sizeof *mm)))
    return -ENOMEM;
  mm->tgid = tgid;
  mm->refs = 1;
  mm->auxv_size = (size_t)size;
  memcpy(mm->auxv, auxv, (size_t)size);
  int err = open_files(dir, mm);
  if (err) {
    alloc_free(mm);
    return err;
  }
  mm_learn_secret(mm);
  mm->next = buckets[(unsigned)tgid % N_BUCKETS];
  buckets[(unsigned)tgid % N_BUCKETS] = mm;
  stats.mms++;
  *out = mm;
  return 0;
}

int iofs_mm_open(int tgid, struct iofs_mm **out) {
  char path[32];
  snprintf(path, sizeof path, "/proc/%d", tgid);
  int dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0)
    return open_error();
  pthread_mutex_lock(&lock);
  int err = find_or_add(tgid, dir, out);
  pthread_mutex_unlock(&lock);
  close(dir);
  return err;
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
    struct iofs_mm **link = &buckets[(unsigned)mm->tgid % N_BUCKETS];
    while (*link != mm)
      link = &(*link)->next;
    *link = mm->next;
  }
  pthread_mutex_unlock(&lock);
  if (!gone)
    return;
  close(mm->mem_fd);
  close(mm->maps_fd);
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
