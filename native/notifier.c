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

struct iofs_notifier {
  pthread_mutex_t lock;            /* of the three lines below */
  struct taken *unanswered, **tail; /* about files of ours, as they came */
  struct taken **fresh;            /* from here on iofs_notifier_next() gives */
  _Atomic uint64_t *ledger;
  pthread_t thread;
  int listener, stop_fd, ready_fd;
};

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
static void note_oldest(struct iofs_notifier *n) {
  n->ledger[0] = n->unanswered ? n->unanswered->notice.id : 0;
}

static void take(struct iofs_notifier *n) {
  struct iofs_notice notice;
  if (iofs_notice_receive(n->listener, &notice) <= 0)
    return;
  pthread_mutex_lock(&n->lock);
  n->ledger[1] = notice.id;
  if (!n->unanswered)
    n->ledger[0] = notice.id;
  pthread_mutex_unlock(&n->lock);
  struct taken *entry = is_ours(&notice) ? malloc(sizeof *entry) : NULL;
  if (!entry)
    iofs_notice_continue(n->listener, notice.id);
  pthread_mutex_lock(&n->lock);
  if (entry) {
    *entry = (struct taken){NULL, notice};
    *n->tail = entry;
    n->tail = &entry->next;
  }
  note_oldest(n);
  pthread_mutex_unlock(&n->lock);
  if (entry)
    eventfd_write(n->ready_fd, 1);
}

static void *serve(void *notifier) {
  struct iofs_notifier *n = notifier;
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, NULL);
  for (;;) {
    struct pollfd fds[2] = {{n->listener, POLLIN, 0}, {n->stop_fd, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0)
      continue;
    if (fds[1].revents || fds[0].revents & POLLHUP) /* HUP: nobody is under the filter any more */
      return NULL;
    take(n);
  }
}

static void free_notifier(struct iofs_notifier *n) {
  if (n->stop_fd >= 0)
    close(n->stop_fd);
  if (n->ready_fd >= 0)
    close(n->ready_fd);
  pthread_mutex_destroy(&n->lock);
  free(n);
}

int iofs_notifier_start(int listener, uint64_t *ledger, struct iofs_notifier **out) {
  struct iofs_notifier *n = calloc(1, sizeof *n);
  if (!n)
    return -ENOMEM;
  pthread_mutex_init(&n->lock, NULL);
  n->listener = listener;
  n->ledger = (_Atomic uint64_t *)ledger;
  n->tail = n->fresh = &n->unanswered;
  n->stop_fd = eventfd(0, EFD_CLOEXEC);
  n->ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  int r = n->stop_fd < 0 || n->ready_fd < 0 ? -errno : 0;
  if (!r) {
    /* The two take turns on one processor, which makes a notice several times as fast. */
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
    r = -pthread_create(&n->thread, NULL, serve, n);
  }
  if (r)
    free_notifier(n);
  else
    *out = n;
  return r;
}

int iofs_notifier_fd(const struct iofs_notifier *n) { return n->ready_fd; }

int iofs_notifier_next(struct iofs_notifier *n, struct iofs_notice *out) {
  eventfd_t count;
  pthread_mutex_lock(&n->lock);
  struct taken *entry = *n->fresh;
  if (entry) {
    *out = entry->notice;
    n->fresh = &entry->next;
  } else {
    eventfd_read(n->ready_fd, &count); /* whatever comes from now on is told anew */
  }
  pthread_mutex_unlock(&n->lock);
  return entry != NULL;
}

void iofs_notifier_forget(struct iofs_notifier *n, uint64_t id) {
  pthread_mutex_lock(&n->lock);
  for (struct taken **at = &n->unanswered; *at; at = &(*at)->next)
    if ((*at)->notice.id == id) {
      struct taken *entry = *at;
      *at = entry->next;
      if (n->tail == &entry->next)
        n->tail = at;
      if (n->fresh == &entry->next)
        n->fresh = at;
      free(entry);
      break;
    }
  note_oldest(n);
  pthread_mutex_unlock(&n->lock);
}

/* What is left unanswered stays in the ledger. */
void iofs_notifier_stop(struct iofs_notifier *n) {
  eventfd_write(n->stop_fd, 1);
  pthread_join(n->thread, NULL);
  while (n->unanswered) {
    struct taken *entry = n->unanswered;
    n->unanswered = entry->next;
    free(entry);
  }
  free_notifier(n);
}
