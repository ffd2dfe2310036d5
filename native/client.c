/*
 * The memory and the files of a client thread that waits for us: plain system calls, nothing kept.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "job.h"
#include "serve.h"
#include "transport.h"

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL /* Linux 6.9 */
#endif

/* Linux refuses user pointers with the sign bit; process_vm_readv() would find the vsyscall page. */
static int outside_user_space(uint64_t address, size_t length) {
  uint64_t last = address + (length ? length - 1 : 0);
  return last < address || (int64_t)last < 0;
}

static ssize_t move(int tid, uint64_t address, void *buf, size_t length, int write) {
  struct iovec local = {buf, length};
  struct iovec remote = {(void *)(uintptr_t)address, length};
  if (outside_user_space(address, length))
    return -EFAULT;
  ssize_t n = write ? process_vm_writev(tid, &local, 1, &remote, 1, 0)
                    : process_vm_readv(tid, &local, 1, &remote, 1, 0);
  return n < 0 ? -errno : n;
}

ssize_t iofs_client_read(int tid, uint64_t address, void *buf, size_t length) {
  return move(tid, address, buf, length, 0);
}

ssize_t iofs_client_read_both(int tid, uint64_t address, void *buf, size_t length,
                              uint64_t elsewhere, void *more, size_t n_more) {
  struct iovec local[] = {{buf, length}, {more, n_more}};
  struct iovec remote[] = {{(void *)address, length}, {(void *)elsewhere, n_more}};
  if (outside_user_space(address, length) || outside_user_space(elsewhere, n_more))
    return -EFAULT;
  ssize_t n = process_vm_readv(tid, local, 2, remote, 2, 0);
  return n < 0 ? -errno : n;
}

ssize_t iofs_client_write(int tid, uint64_t address, const void *buf, size_t length) {
  return move(tid, address, (void *)(uintptr_t)buf, length, 1);
}

/* The thread group of a thread, from /proc. */
static int tgid_of(int tid) {
  char path[64], line[256];
  int tgid = -ESRCH;
  snprintf(path, sizeof path, "/proc/%d/status", tid);
  FILE *file = fopen(path, "re");
  if (!file)
    return -ESRCH;
  while (fgets(line, sizeof line, file))
    if (sscanf(line, "Tgid: %d", &tgid) == 1)
      break;
  fclose(file);
  return tgid;
}

/* That our own descriptors have run out is no EMFILE of the client's. */
static int our_error(int error) { return error == EMFILE || error == ENFILE ? -ENOMEM : -error; }

int iofs_client_fd(int tid, int fd) {
  if (fd < 0)
    return -EBADF;
  int pidfd = syscall(SYS_pidfd_open, tid, PIDFD_THREAD);
  if (pidfd < 0 && errno == EINVAL) { /* a kernel without PIDFD_THREAD wants the group's leader */
    int tgid = tgid_of(tid);
    if (tgid < 0)
      return tgid;
    pidfd = syscall(SYS_pidfd_open, tgid, 0);
  }
  if (pidfd < 0)
    return our_error(errno);
  int copy = syscall(SYS_pidfd_getfd, pidfd, fd, 0);
  if (copy < 0)
    copy = our_error(errno);
  close(pidfd);
  if (copy >= 0 && fcntl(copy, F_GETFL) & O_PATH) { /* names a file, but is not open for use */
    close(copy);
    return -EBADF;
  }
  return copy;
}

static void *close_one(void *fd) {
  close((int)(intptr_t)fd);
  return NULL;
}

/* close(2) asks the file system. Our own answers by itself, and its RELEASE has to come in order;
 * memory and the kernel's own files have none to ask; for others there is a thread, which shares
 * the table of descriptors of the one that makes it. */
void iofs_client_close(int fd) {
  static const char anonymous[] = "anon_inode:"; /* what has a file system begins with a slash */
  const ssize_t n = sizeof anonymous - 1;
  char path[32], target[sizeof anonymous];
  pthread_t closer;
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  int is_anonymous = readlink(path, target, n) == n && !memcmp(target, anonymous, n);
  struct statx stx;
  int is_ours = !statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &stx) &&
                makedev(stx.stx_dev_major, stx.stx_dev_minor) == iofs_transport_device();
  if (is_ours || is_anonymous || fcntl(fd, F_GET_SEALS) >= 0 ||
      pthread_create(&closer, NULL, close_one, (void *)(intptr_t)fd))
    close(fd);
  else
    pthread_detach(closer);
}

int iofs_client_is_dying(int tid) {
  char path[32], line[128];
  unsigned long long pending = 0;
  snprintf(path, sizeof path, "/proc/%d/status", tid);
  FILE *status = fopen(path, "re");
  if (!status)
    return errno == ENOENT || errno == ESRCH;
  while (fgets(line, sizeof line, status) && sscanf(line, "SigPnd:%llx", &pending) != 1)
    ;
  fclose(status);
  /* Whatever ends a process, SIGKILL is what its threads find. Not before it is delivered if it is
   * a signal with a core dump: that does not end a wait that is only killable, on Linux neither. */
  return pending >> (SIGKILL - 1) & 1;
}

/* ---- what a thread waits for ------------------------------------------------------------------- */

/* System calls that ask for attributes by a path, and truncate(), which a device refuses because it
 * is one. Of all tables at once: what the same number means in another one opens nothing. */
static int asks_for_attributes(long nr) {
  switch (nr) {
  case SYS_newfstatat:
  case SYS_statx:
  case SYS_truncate:
#if defined(__x86_64__)
  case SYS_stat:
  case SYS_lstat:
  case 92: case 193: /* i386: truncate, truncate64 */
  case 106: case 107: /* stat, lstat */
  case 195: case 196: /* stat64, lstat64 */
  case 300: case 383: /* fstatat64, statx */
#endif
    return 1;
  default:
    return 0;
  }
}

/* The number of the system call that a thread waits in, without the bit of x32; -1: none. */
static long syscall_of(int tid) {
  enum { TRIES = 1000 }; /* our request may be here before the thread has gone to sleep */
  char path[64], text[32];
  snprintf(path, sizeof path, "/proc/%d/syscall", tid);
  for (int i = 0; i < TRIES; i++) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
      return -1;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
      return -1;
    text[n] = 0;
    if (strncmp(text, "running", 7) != 0) {
      long nr = strtol(text, NULL, 10);
      return nr < 0 ? -1 : nr & ~0x40000000L;
    }
    sched_yield();
  }
  return -1;
}

int iofs_client_looks_at_path(int tid) { return asks_for_attributes(syscall_of(tid)); }

int iofs_client_is_in_ioctl(int tid) {
  long nr = syscall_of(tid);
#if defined(__x86_64__)
  return nr == SYS_ioctl || nr == 514 || nr == 54; /* x32, i386 */
#else
  return nr == SYS_ioctl;
#endif
}
