/*
 * Threads for requests to our own mount.
 *
 * A thread that waits for a FUSE answer cannot be killed, and a process keeps its descriptors until
 * its last thread is gone. Were one of our ordinary threads killed while it waits for ourselves,
 * /dev/fuse would stay open, nobody would answer, and all would hang for good. Each of these threads
 * has a table of descriptors of its own, without /dev/fuse: when the others are gone the device
 * closes, the wait ends. Descriptors that one opens for others travel over a socket.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "readers.h"
#include "serve.h"
#include "transport.h"

enum { IDLE, ASKED, ANSWERED };

struct question {
  enum { OPEN, IDENTIFY } what;
  const char *path; /* to open, and how; else: */
  int access_mode;
  int tid, fd;      /* whose descriptor is meant */
  dev_t device;
  uint64_t fh;
  int result;
};

struct side {
  pthread_mutex_t lock; /* of all below but the sockets */
  pthread_mutex_t busy; /* one question at a time */
  pthread_cond_t changed;
  pthread_t thread;
  int running, ending, state, sockets[2];
  struct question question;
};

#define SIDE                                                                                       \
  {.lock = PTHREAD_MUTEX_INITIALIZER,                                                              \
   .busy = PTHREAD_MUTEX_INITIALIZER,                                                              \
   .changed = PTHREAD_COND_INITIALIZER,                                                            \
   .sockets = {-1, -1}}

/* An open is answered by pyfuse3, which may first have to open the pages of that file (O_NOATIME);
 * and who runs pyfuse3 may be waiting for a descriptor to be identified, which readers answer alone.
 * So none of these waits for another. */
static struct side opener = SIDE, sharer = SIDE, identifier = SIDE;
static struct side *const sides[] = {&opener, &sharer, &identifier};
enum { N_SIDES = sizeof sides / sizeof *sides };
static _Atomic int refusing; /* the mount is about to go: a path below it would be another's */

static int send_fd(const struct side *side, int fd) {
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
  return sendmsg(side->sockets[1], &message, 0) < 0 ? -errno : 0;
}

static int receive_fd(const struct side *side) {
  char byte;
  int fd = -EIO;
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof fd)];
  } control = {0};
  struct iovec iov = {&byte, 1};
  struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                           .msg_controllen = sizeof control};
  if (recvmsg(side->sockets[0], &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) < 0)
    return -errno;
  if (!CMSG_FIRSTHDR(&message))
    return -EMFILE;
  memcpy(&fd, CMSG_DATA(&control.header), sizeof fd);
  return fd;
}

static int open_and_send(const struct side *side, const char *path, int access_mode) {
  int fd = open(path, access_mode | O_CLOEXEC);
  if (fd < 0)
    return -errno;
  int r = send_fd(side, fd);
  close(fd);
  return r;
}

/* What the kernel knows without asking us, or whoever else serves the file. */
static int check_device(int fd, dev_t device) {
  struct statx stx;
  if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &stx) < 0)
    return -errno;
  const int ours = makedev(stx.stx_dev_major, stx.stx_dev_minor) == device;
  return ours && S_ISREG(stx.stx_mode) ? 0 : -ENOTTY;
}

static int identify(int tid, int fd, dev_t device, uint64_t *fh) {
  int copy = iofs_client_fd(tid, fd);
  if (copy < 0)
    return copy;
  int r = check_device(copy, device);
  if (!r && ioctl(copy, IOFS_IDENTIFY, fh) < 0)
    r = -errno;
  if (r == -ENOTTY)
    iofs_client_close(copy);
  else
    close(copy);
  return r;
}

static int answer(const struct side *side, struct question *question) {
  if (question->what == OPEN)
    return open_and_send(side, question->path, question->access_mode);
  return identify(question->tid, question->fd, question->device, &question->fh);
}

/* With the lock held. */
static void set_answer(struct side *side, int result) {
  side->question.result = result;
  side->state = ANSWERED;
  pthread_cond_broadcast(&side->changed);
}

static void *serve(void *arg) {
  struct side *side = arg;
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, NULL);
  int r = unshare(CLONE_FILES) < 0 ? -errno : 0;
  const int has_own_table = !r;
  if (has_own_table) { /* keep the socket alone: stderr is the user's, who may wait for its end */
    if (side->sockets[1] > 0)
      close_range(0, side->sockets[1] - 1, 0);
    close_range(side->sockets[1] + 1, ~0u, 0);
  }
  pthread_mutex_lock(&side->lock);
  set_answer(side, r);
  for (;;) {
    while (side->state != ASKED && !side->ending)
      pthread_cond_wait(&side->changed, &side->lock);
    if (side->ending)
      break;
    pthread_mutex_unlock(&side->lock);
    r = answer(side, &side->question);
    pthread_mutex_lock(&side->lock);
    set_answer(side, r);
  }
  if (side->state == ASKED)
    set_answer(side, -ENOTCONN);
  side->running = 0;
  pthread_mutex_unlock(&side->lock);
  if (has_own_table)
    close(side->sockets[1]); /* the copy in it */
  return NULL;
}

/* With the lock held. */
static int wait_for_answer(struct side *side) {
  while (side->state != ANSWERED)
    pthread_cond_wait(&side->changed, &side->lock);
  side->state = IDLE;
  return side->question.result;
}

static void stop(struct side *side) {
  pthread_mutex_lock(&side->lock);
  const int was_running = side->running && !side->ending;
  side->ending = 1; /* it may be at a question, and answers that first */
  pthread_cond_broadcast(&side->changed);
  pthread_mutex_unlock(&side->lock);
  if (was_running)
    pthread_join(side->thread, NULL);
  pthread_mutex_lock(&side->busy); /* whoever asked has taken the answer */
  for (int i = 0; i < 2; i++) {
    if (side->sockets[i] >= 0)
      close(side->sockets[i]);
    side->sockets[i] = -1;
  }
  pthread_mutex_unlock(&side->busy);
}

static int start(struct side *side) {
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, side->sockets) < 0)
    return -errno;
  side->state = IDLE;
  side->ending = 0;
  side->running = 1;
  int r = -pthread_create(&side->thread, NULL, serve, side);
  if (r) {
    side->running = 0;
  } else {
    pthread_mutex_lock(&side->lock);
    r = wait_for_answer(side);
    pthread_mutex_unlock(&side->lock);
  }
  if (r)
    stop(side);
  return r;
}

int iofs_side_start(void) {
  refusing = 0;
  for (int i = 0; i < N_SIDES; i++) {
    int r = start(sides[i]);
    if (r) {
      while (i-- > 0)
        stop(sides[i]);
      return r;
    }
  }
  return 0;
}

void iofs_side_refuse(void) { refusing = 1; }

void iofs_side_stop(void) {
  for (int i = 0; i < N_SIDES; i++)
    stop(sides[i]);
}

/* With `busy` held. */
static int ask(struct side *side) {
  int r = -ENOTCONN;
  pthread_mutex_lock(&side->lock);
  if (side->running && !side->ending && !refusing) {
    side->state = ASKED;
    pthread_cond_broadcast(&side->changed);
    r = wait_for_answer(side);
  }
  pthread_mutex_unlock(&side->lock);
  return r;
}

int iofs_transport_open(const char *path, int access_mode) {
  struct side *side = access_mode & O_NOATIME ? &sharer : &opener;
  pthread_mutex_lock(&side->busy);
  side->question = (struct question){.what = OPEN, .path = path, .access_mode = access_mode};
  int r = ask(side);
  if (!r)
    r = receive_fd(side);
  pthread_mutex_unlock(&side->busy);
  return r;
}

int iofs_transport_resolve(int tid, int fd, uint64_t *fh) {
  readers_step_aside();
  pthread_mutex_lock(&identifier.busy);
  identifier.question = (struct question){
      .what = IDENTIFY, .tid = tid, .fd = fd, .device = iofs_transport_device()};
  int r = ask(&identifier);
  *fh = identifier.question.fh;
  pthread_mutex_unlock(&identifier.busy);
  return r;
}
