/*
 * A process that holds /dev/fuse where BARs are mapped through the page cache.
 *
 * Without the right to FUSE passthrough, clients and the server map the device file itself and meet
 * in its page cache. The kernel fills such pages by reading the file and writes them back to it,
 * last when the server is torn down: its memory goes before its descriptors. Were /dev/fuse one of
 * those, a server that is killed would wait for its own answer for ever. So it is held here; the
 * pages come from a file that both have, and all else travels over a socket whose messages are what
 * is read from and written to /dev/fuse. When the server is gone the socket closes, and with this
 * process the connection.
 *
 * The pages of a part of a file that is memory are memory for read(2), too, when whole ones are
 * asked for: the two look the same from here.
 *
 * Forked from a process with threads: nothing here allocates or takes a lock.
 */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fuse_wire.h"

#ifndef FUSE_WRITE_CACHE
#define FUSE_WRITE_CACHE 1
#endif

#define PAGE 4096u
#define MAX_MESSAGE (KEEPER_MAX_DATA + 8192)
enum { MAX_NODES = 1024, MAX_PARTS = 16 };

struct shared_node {
  uint64_t nodeid, n_parts;
  uint64_t parts[MAX_PARTS][2];
  int fd;
};

static struct shared_node nodes[MAX_NODES];
static size_t n_nodes;
static unsigned char buffer[MAX_MESSAGE];
static pid_t server;

static const struct shared_node *find(uint64_t nodeid) {
  for (size_t i = 0; i < n_nodes; i++)
    if (nodes[i].nodeid == nodeid)
      return &nodes[i];
  return NULL;
}

static int is_memory(const struct shared_node *node, uint64_t offset, uint64_t length) {
  for (size_t i = 0; i < node->n_parts; i++)
    if (offset < node->parts[i][0] + node->parts[i][1] && node->parts[i][0] < offset + length)
      return 1;
  return 0;
}

/* ---- requests -------------------------------------------------------------------------------- */

static void answer(int fuse_fd, uint64_t unique, int error, const void *body, size_t length) {
  struct fuse_out_header header = {sizeof header + length, error, unique};
  struct iovec iov[2] = {{&header, sizeof header}, {(void *)(uintptr_t)body, length}};
  /* Fails if nobody waits for it any more. */
  if (writev(fuse_fd, iov, 2) < 0)
    return;
}

/* In full length, whatever the file has: a short answer would be its end. The kernel reads ahead of
 * what is touched, for the server too. */
static int give_pages(int fuse_fd, const struct fuse_in_header *in, const struct shared_node *node,
                      const struct fuse_read_in *arg) {
  static unsigned char pages[KEEPER_MAX_DATA];
  if (arg->offset % PAGE || arg->size % PAGE || arg->size > sizeof pages ||
      (arg->fh != KEEPER_FH && !is_memory(node, arg->offset, arg->size)))
    return 0;
  ssize_t n = pread(node->fd, pages, arg->size, (off_t)arg->offset);
  memset(pages + (n > 0 ? n : 0), 0, arg->size - (n > 0 ? n : 0));
  answer(fuse_fd, in->unique, 0, pages, arg->size);
  return 1;
}

static int take_pages(int fuse_fd, const struct fuse_in_header *in, const struct shared_node *node,
                      const struct fuse_write_in *arg) {
  struct fuse_write_out out = {.size = arg->size};
  if (!(arg->write_flags & FUSE_WRITE_CACHE))
    return 0;
  ssize_t n = pwrite(node->fd, arg + 1, arg->size, (off_t)arg->offset);
  answer(fuse_fd, in->unique, n == (ssize_t)arg->size ? 0 : -EIO, &out, n < 0 ? 0 : sizeof out);
  return 1;
}

static int is_of_server(uint32_t tid) { return !syscall(SYS_tgkill, server, tid, 0); }

/* 1: the request is answered. */
static int handle(int fuse_fd, const struct fuse_in_header *in) {
  const struct shared_node *node = find(in->nodeid);
  const void *arg = in + 1;
  struct fuse_open_out opened = {.fh = KEEPER_FH, .open_flags = FOPEN_DIRECT_IO};

  if (in->opcode == FUSE_RELEASE) {
    /* Nobody waits for the answer, and those that the server has not come to would hold up the
     * kernel's writing of pages, for which the server may wait. It hears of it all the same. */
    answer(fuse_fd, in->unique, 0, NULL, 0);
    return ((const struct fuse_release_in *)arg)->fh == KEEPER_FH;
  }
  if (!node)
    return 0;
  switch (in->opcode) {
  case FUSE_OPEN:
    if (!(((const struct fuse_open_in *)arg)->flags & O_NOATIME) || !is_of_server(in->pid))
      return 0;
    answer(fuse_fd, in->unique, 0, &opened, sizeof opened);
    return 1;
  case FUSE_FLUSH:
    if (((const struct fuse_flush_in *)arg)->fh != KEEPER_FH)
      return 0;
    answer(fuse_fd, in->unique, 0, NULL, 0);
    return 1;
  case FUSE_READ:
    return give_pages(fuse_fd, in, node, arg);
  case FUSE_WRITE:
    return take_pages(fuse_fd, in, node, arg);
  default:
    return 0;
  }
}

/* 0: the connection is over. */
static int pass_request_on(int fuse_fd, int socket) {
  ssize_t n = read(fuse_fd, buffer, sizeof buffer);
  if (n < 0) /* ENOENT: the request was taken back */
    return errno == EAGAIN || errno == EINTR || errno == ENOENT;
  if (handle(fuse_fd, (const void *)buffer))
    return 1;
  return send(socket, buffer, (size_t)n, MSG_NOSIGNAL) >= 0;
}

/* ---- messages of the server ------------------------------------------------------------------ */

static void add_node(struct msghdr *message, size_t length) {
  struct cmsghdr *control = CMSG_FIRSTHDR(message);
  struct shared_node *node = &nodes[n_nodes];
  if (length != sizeof *node || n_nodes == MAX_NODES) {
    int fd;
    memcpy(&fd, CMSG_DATA(control), sizeof fd);
    close(fd); /* its pages read as what the server answers */
    return;
  }
  memcpy(node, buffer, length);
  memcpy(&node->fd, CMSG_DATA(control), sizeof node->fd);
  n_nodes++;
}

/* 0: the server is gone, or the connection. */
static int pass_answer_on(int fuse_fd, int socket) {
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec iov = {buffer, sizeof buffer};
  struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                           .msg_controllen = sizeof control};
  ssize_t n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  if (n <= 0)
    return n < 0 && errno == EINTR;
  if (message.msg_controllen)
    add_node(&message, (size_t)n);
  else if (write(fuse_fd, buffer, (size_t)n) < 0)
    return errno != ENODEV; /* else nobody waits for it */
  return 1;
}

/* What the server does not take lies in /dev/fuse, which keeps its order and bounds its number. */
static void keep(int fuse_fd, int socket) {
  struct pollfd fds[2] = {{socket, POLLIN, 0}, {fuse_fd, POLLIN, 0}};
  for (;;) {
    struct pollfd room = {socket, POLLOUT, 0};
    if (poll(fds, 2, -1) < 0)
      continue;
    if ((fds[0].revents & (POLLIN | POLLHUP | POLLERR)) && !pass_answer_on(fuse_fd, socket))
      return;
    if ((fds[1].revents & POLLERR) || (fds[0].revents & POLLHUP))
      return;
    if (!(fds[1].revents & POLLIN))
      continue;
    if (poll(&room, 1, 0) == 1 && (room.revents & POLLOUT)) {
      if (!pass_request_on(fuse_fd, socket))
        return;
    } else { /* until there is room, or an answer */
      struct pollfd either = {socket, POLLIN | POLLOUT, 0};
      poll(&either, 1, -1);
    }
  }
}

/* ---- the server's side ----------------------------------------------------------------------- */

static void run(int fuse_fd, int socket) {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, NULL);
  prctl(PR_SET_NAME, "iommufs-keeper");
  fuse_fd = fcntl(fuse_fd, F_DUPFD, 2);
  socket = fcntl(socket, F_DUPFD, 2);
  /* Nothing else of the server's is held open by this. */
  if (dup2(fuse_fd, 0) == 0 && dup2(socket, 1) == 1 && !close_range(2, ~0u, 0))
    keep(0, 1);
  _exit(0);
}

int keeper_start(int fuse_fd, int *socket, pid_t *pid) {
  int ends[2], room = 1 << 20;
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
    return -errno;
  for (int i = 0; i < 2; i++) /* the default has no room for two of the largest */
    setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  server = getpid();
  /* Not a child that wait() tells of: those of a run's server are the run. */
  long child = syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
  if (child == 0)
    run(fuse_fd, ends[1]);
  int err = child < 0 ? -errno : 0;
  close(ends[1]);
  if (err) {
    close(ends[0]);
    return err;
  }
  close(fuse_fd);
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  *socket = ends[0];
  *pid = (pid_t)child;
  return 0;
}

int keeper_share(int socket, uint64_t nodeid, int fd, const uint64_t (*parts)[2], size_t n) {
  struct shared_node node = {.nodeid = nodeid, .n_parts = n};
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof fd)];
  } control = {0};
  struct iovec iov = {&node, sizeof node};
  struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                           .msg_controllen = sizeof control};
  struct pollfd room = {socket, POLLOUT, 0};
  if (n > MAX_PARTS)
    return -E2BIG;
  memcpy(node.parts, parts, n * sizeof *parts);
  control.header = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
  memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
  while (sendmsg(socket, &message, MSG_NOSIGNAL) < 0) {
    if (errno != EAGAIN && errno != EINTR)
      return -errno;
    poll(&room, 1, -1);
  }
  return 0;
}

void keeper_join(pid_t pid) {
  while (waitpid(pid, NULL, __WCLONE) < 0 && errno == EINTR)
    ;
}
