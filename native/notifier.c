/*
 * The thread that takes notices. Nearly all are about files of others, and the kernel may carry on:
 * it says so at once, without Python. What is about a file of ours goes to a queue.
 *
 * Nothing that it does can wait for a client, nor for ourselves: it looks at descriptors through
 * /proc, and asks for what the kernel knows already.
 */
#define _GNU_SOURCE
#include "notice.h"
#include "transport.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS /* Linux 6.6 */
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif

struct taken {
  struct taken *next;
  struct iofs_notice notice;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the three lines below */
static struct taken *unanswered, **tail = &unanswered; /* about files of ours, as they came */
static struct taken **fresh = &unanswered;             /* from here on iofs_notifier_next() gives */
static _Atomic uint64_t *ledger;
static pthread_t thread;
static int listener = -1, stop_fd = -1, ready_fd = -1;

int iofs_notice_statx(const struct iofs_notice *notice, uint32_t mask, struct statx *out) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd/%d", notice->tid, notice->fd);
  const int flags = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT;
  return statx(AT_FDCWD, path, flags, mask, out) < 0 ? -errno : 0;
}

static int is_ours(struct iofs_notice *notice) {
  struct statx stx;
  if (notice->fd < 0 || iofs_notice_statx(notice, STATX_TYPE | STATX_INO, &stx) < 0)
    return 0;
  notice->ino = stx.stx_ino;
  return S_ISREG(stx.stx_mode) &&
         makedev(stx.stx_dev_major, stx.stx_dev_minor) == iofs_transport_device();
}

/* With the lock held. */
static void note_oldest(void) { ledger[0] = unanswered ? unanswered->notice.id : 0; }

static void take(void) {
  struct iofs_notice notice;
  if (iofs_notice_receive(listener, &notice) <= 0)
    return;
  pthread_mutex_lock(&lock);
  ledger[1] = notice.id;
  if (!unanswered)
    ledger[0] = notice.id;
  pthread_mutex_unlock(&lock);
  struct taken *entry = is_ours(&notice) ? malloc(sizeof *entry) : NULL;
  if (!entry)
    iofs_notice_continue(listener, notice.id);
  pthread_mutex_lock(&lock);
  if (entry) {
    *entry = (struct taken){NULL, notice};
    *tail = entry;
    tail = &entry->next;
  }
  note_oldest();
  pthread_mutex_unlock(&lock);
  if (entry)
    eventfd_write(ready_fd, 1);
}

static void *serve(void *unused) {
  sigset_t all;
  (void)unused;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, NULL);
  for (;;) {
    struct pollfd fds[2] = {{listener, POLLIN, 0}, {stop_fd, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0)
      continue;
    if (fds[1].revents || fds[0].revents & POLLHUP) /* HUP: nobody is under the filter any more */
      return NULL;
    take();
  }
}

static void close_fds(void) {
  if (stop_fd >= 0)
    close(stop_fd);
  if (ready_fd >= 0)
    close(ready_fd);
  listener = stop_fd = ready_fd = -1;
}

int iofs_notifier_start(int fd, uint64_t *words) {
  listener = fd;
  ledger = (_Atomic uint64_t *)words;
  stop_fd = eventfd(0, EFD_CLOEXEC);
  ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  int r = stop_fd < 0 || ready_fd < 0 ? -errno : 0;
  if (!r) {
    /* The two take turns on one processor, which makes a notice several times as fast. */
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
    r = -pthread_create(&thread, NULL, serve, NULL);
  }
  if (r)
    close_fds();
  return r;
}

int iofs_notifier_fd(void) { return ready_fd; }

int iofs_notifier_next(struct iofs_notice *out) {
  eventfd_t n;
  pthread_mutex_lock(&lock);
  struct taken *entry = *fresh;
  if (entry) {
    *out = entry->notice;
    fresh = &entry->next;
  } else {
    eventfd_read(ready_fd, &n); /* whatever comes from now on is told anew */
  }
  pthread_mutex_unlock(&lock);
  return entry != NULL;
}

void iofs_notifier_forget(uint64_t id) {
  pthread_mutex_lock(&lock);
  for (struct taken **at = &unanswered; *at; at = &(*at)->next)
    if ((*at)->notice.id == id) {
      struct taken *entry = *at;
      *at = entry->next;
      if (tail == &entry->next)
        tail = at;
      if (fresh == &entry->next)
        fresh = at;
      free(entry);
      break;
    }
  note_oldest();
  pthread_mutex_unlock(&lock);
}

/* What is left unanswered stays in the ledger. */
void iofs_notifier_stop(void) {
  eventfd_write(stop_fd, 1);
  pthread_join(thread, NULL);
  while (unanswered) {
    struct taken *entry = unanswered;
    unanswered = entry->next;
    free(entry);
  }
  tail = fresh = &unanswered;
  close_fds();
}
