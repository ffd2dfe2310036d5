/*
 * A thread for requests to our own mount.
 *
 * A thread that waits for a FUSE answer cannot be killed, and a process keeps its descriptors until
 * its last thread is gone. Were one of our ordinary threads killed while it waits for ourselves,
 * /dev/fuse would stay open, nobody would answer, and all would hang for good. This thread has a
 * table of descriptors of its own, without /dev/fuse: when the others are gone the device closes,
 * the wait ends. Descriptors that it opens for others travel over a socket.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "iommufs.h"
#include "transport.h"

enum { IDLE, ASKED, ANSWERED };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the states and the question */
static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER; /* one question at a time */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_t thread;
static int running, ending, state, sockets[2] = {-1, -1};

static struct {
  const char *path; /* to open, else: */
  int tid, fd;      /* whose descriptor is meant */
  dev_t device;
  uint64_t fh;
  int result;
} question;

static int send_fd(int fd) {
  char byte = 0;
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof fd)];
  } control = {0};
  struct iovec iov = {&byte, 1};
  struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                           .msg_controllen = sizeof control};
  control.header = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
  memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
  return sendmsg(sockets[1], &message, 0) < 0 ? -errno : 0;
}

static int receive_fd(void) {
  char byte;
  int fd = -EIO;
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof fd)];
  } control = {0};
  struct iovec iov = {&byte, 1};
  struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                           .msg_controllen = sizeof control};
  if (recvmsg(sockets[0], &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) < 0)
    return -errno;
  if (!CMSG_FIRSTHDR(&message))
    return -EMFILE;
  memcpy(&fd, CMSG_DATA(&control.header), sizeof fd);
  return fd;
}

static int open_and_send(const char *path) {
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0)
    return -errno;
  int r = send_fd(fd);
  close(fd);
  return r;
}

static int identify(int tid, int fd, dev_t device, uint64_t *fh) {
  struct statx stx;
  int copy = iofs_client_fd(tid, fd);
  if (copy < 0)
    return copy;
  int r = 0;
  /* What the kernel knows without asking us. */
  if (statx(copy, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &stx) < 0)
    r = -errno;
  else if (makedev(stx.stx_dev_major, stx.stx_dev_minor) != device || !S_ISREG(stx.stx_mode))
    r = -ENOTTY;
  else if (ioctl(copy, IOFS_IDENTIFY, fh) < 0)
    r = -errno;
  close(copy);
  return r;
}

static void *serve(void *unused) {
  sigset_t all;
  (void)unused;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, NULL);
  int r = unshare(CLONE_FILES) < 0 ? -errno : 0;
  const int has_own_table = !r;
  if (has_own_table) { /* keep the socket alone */
    close_range(3, sockets[1] - 1, 0);
    close_range(sockets[1] + 1, ~0u, 0);
  }
  pthread_mutex_lock(&lock);
  question.result = r;
  state = ANSWERED;
  pthread_cond_broadcast(&changed);
  for (;;) {
    while (state != ASKED && !ending)
      pthread_cond_wait(&changed, &lock);
    if (ending)
      break;
    pthread_mutex_unlock(&lock);
    r = question.path ? open_and_send(question.path)
                      : identify(question.tid, question.fd, question.device, &question.fh);
    pthread_mutex_lock(&lock);
    question.result = r;
    state = ANSWERED;
    pthread_cond_broadcast(&changed);
  }
  if (state == ASKED) {
    question.result = -ENOTCONN;
    state = ANSWERED;
    pthread_cond_broadcast(&changed);
  }
  running = 0;
  pthread_mutex_unlock(&lock);
  if (has_own_table)
    close(sockets[1]); /* the copy in it */
  return NULL;
}

/* With `lock` held. */
static int wait_for_answer(void) {
  while (state != ANSWERED)
    pthread_cond_wait(&changed, &lock);
  state = IDLE;
  return question.result;
}

int iofs_side_start(void) {
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
    return -errno;
  state = IDLE;
  ending = 0;
  running = 1;
  int r = -pthread_create(&thread, NULL, serve, NULL);
  if (r) {
    running = 0;
  } else {
    pthread_mutex_lock(&lock);
    r = wait_for_answer();
    pthread_mutex_unlock(&lock);
  }
  if (r)
    iofs_side_stop();
  return r;
}

void iofs_side_stop(void) {
  pthread_mutex_lock(&lock);
  const int was_running = running && !ending;
  ending = 1; /* it may be at a question, and answers that first */
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
  if (was_running)
    pthread_join(thread, NULL);
  pthread_mutex_lock(&busy); /* whoever asked has taken the answer */
  for (int i = 0; i < 2; i++) {
    if (sockets[i] >= 0)
      close(sockets[i]);
    sockets[i] = -1;
  }
  pthread_mutex_unlock(&busy);
}

static int ask(void) {
  int r = -ENOTCONN;
  pthread_mutex_lock(&lock);
  if (running && !ending) {
    state = ASKED;
    pthread_cond_broadcast(&changed);
    r = wait_for_answer();
  }
  pthread_mutex_unlock(&lock);
  return r;
}

int iofs_transport_open(const char *path) {
  pthread_mutex_lock(&busy);
  question.path = path;
  int r = ask();
  if (!r)
    r = receive_fd();
  pthread_mutex_unlock(&busy);
  return r;
}

int iofs_transport_resolve(int tid, int fd, uint64_t *fh) {
  pthread_mutex_lock(&busy);
  question.path = NULL;
  question.tid = tid;
  question.fd = fd;
  question.device = iofs_transport_device();
  int r = ask();
  *fh = question.fh;
  pthread_mutex_unlock(&busy);
  return r;
}
