/*
 * How pyfuse3 comes to read our queue instead of /dev/fuse.
 *
 * pyfuse3's module calls functions of libfuse by name. This object is loaded with RTLD_GLOBAL before
 * it, so the ones below are what it finds. Where libfuse lets a session have input and output of
 * its own (3.14; another signature in 3.17) the session gets ours. Since 3.18 libfuse refuses that;
 * then the session writes its answers into a pipe that a thread empties, and what pyfuse3 waits for
 * and receives comes from our queue without libfuse.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <link.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "serve.h"
#include "transport.h"

#define EXPORTED __attribute__((visibility("default")))
#define MAX_ANSWER ((1u << 20) + 4096) /* the largest read, and room for headers */

/* libfuse's struct fuse_custom_io up to what 3.14 has. */
struct custom_io {
  ssize_t (*writev)(int fd, struct iovec *iov, int count, void *userdata);
  ssize_t (*read)(int fd, void *buf, size_t size, void *userdata);
  ssize_t (*splice_receive)(int, off_t *, int, off_t *, size_t, unsigned, void *);
  ssize_t (*splice_send)(int, off_t *, int, off_t *, size_t, unsigned, void *);
};

static void *libfuse;
static int without_custom_io; /* a test wants the other way */
static int through_pipe;      /* the session that is mounted goes that way */

void iofs_transport_without_custom_io(int wanted) { without_custom_io = wanted; }

static int is_libfuse(struct dl_phdr_info *info, size_t size, void *found) {
  (void)size;
  const char *base = strrchr(info->dlpi_name, '/');
  if (strncmp(base ? base + 1 : info->dlpi_name, "libfuse3.so", 11) != 0)
    return 0;
  *(void **)found = dlopen(info->dlpi_name, RTLD_NOLOAD | RTLD_NOW);
  return 1;
}

static int use_custom_io(struct fuse_session *session) {
  static const struct custom_io io = {iofs_session_writev, iofs_session_read, NULL, NULL};
  int (*since_3_17)(struct fuse_session *, const struct custom_io *, size_t, int);
  int (*before)(struct fuse_session *, const struct custom_io *, int);
  int (*version)(void);

  *(void **)&version = dlsym(libfuse, "fuse_version");
  *(void **)&since_3_17 = dlsym(libfuse, "fuse_session_custom_io_317");
  *(void **)&before = dlsym(libfuse, "fuse_session_custom_io");
  /* Not even asked from 3.18 on, where it would complain on stderr. */
  if (without_custom_io || !version || version() >= 318 || (!since_3_17 && !before))
    return -EOPNOTSUPP;
  /* The session closes its descriptor when it is destroyed. */
  int fd = fcntl(iofs_transport_session_fd(), F_DUPFD_CLOEXEC, 0);
  if (fd < 0)
    return -errno;
  int r = since_3_17 ? since_3_17(session, &io, sizeof io, fd) : before(session, &io, fd);
  if (r)
    close(fd);
  return r;
}

/* ---- answers through a pipe ------------------------------------------------------------------ */

static int read_all(int fd, void *buf, size_t length) {
  for (size_t done = 0; done < length;) {
    ssize_t n = read(fd, (char *)buf + done, length - done);
    if (n == 0 || (n < 0 && errno != EINTR))
      return 0;
    done += n > 0 ? n : 0;
  }
  return 1;
}

/* libfuse writes an answer whole before the next; its header says how long it is. */
static void *pass_answers_on(void *argument) {
  int fd = (int)(intptr_t)argument;
  sigset_t all;
  struct fuse_out_header header;
  void *body = malloc(MAX_ANSWER);
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, NULL);
  while (body && read_all(fd, &header, sizeof header)) {
    size_t length = header.len - sizeof header;
    struct iovec iov[2] = {{&header, sizeof header}, {body, length}};
    if (header.len < sizeof header || length > MAX_ANSWER || !read_all(fd, body, length))
      break;
    iofs_session_writev(-1, iov, length ? 2 : 1, NULL);
  }
  free(body);
  close(fd);
  return NULL;
}

static int use_pipe(struct fuse_session *session) {
  int (*mount)(struct fuse_session *, const char *);
  int ends[2];
  char path[32];
  pthread_t thread;
  *(void **)&mount = dlsym(libfuse, "fuse_session_mount");
  if (!mount)
    return -ENOSYS;
  if (pipe2(ends, O_CLOEXEC) < 0)
    return -errno;
  fcntl(ends[1], F_SETPIPE_SZ, MAX_ANSWER); /* fewer turns of the thread, if it is permitted */
  int r = -pthread_create(&thread, NULL, pass_answers_on, (void *)(intptr_t)ends[0]);
  if (r) {
    close(ends[0]);
    close(ends[1]);
    return r;
  }
  pthread_detach(thread); /* it ends when the session closes the pipe */
  snprintf(path, sizeof path, "/dev/fd/%d", ends[1]);
  r = mount(session, path);
  if (r)
    close(ends[1]);
  return r;
}

/* ---- what pyfuse3 calls ---------------------------------------------------------------------- */

EXPORTED int fuse_session_mount(struct fuse_session *session, const char *path) {
  (void)path; /* the transport has mounted already */
  dl_iterate_phdr(is_libfuse, &libfuse);
  if (!libfuse)
    return -ENOSYS;
  int r = use_custom_io(session);
  through_pipe = r == -EOPNOTSUPP;
  return through_pipe ? use_pipe(session) : r;
}

EXPORTED int fuse_session_fd(struct fuse_session *session) {
  int (*real)(struct fuse_session *);
  if (through_pipe)
    return iofs_transport_session_fd();
  *(void **)&real = dlsym(libfuse, "fuse_session_fd");
  return real(session);
}

EXPORTED int fuse_session_receive_buf(struct fuse_session *session, struct fuse_buf *buf) {
  int (*real)(struct fuse_session *, struct fuse_buf *);
  void (*leave)(struct fuse_session *);
  if (!through_pipe) {
    *(void **)&real = dlsym(libfuse, "fuse_session_receive_buf");
    return real(session, buf);
  }
  if (!buf->mem && !(buf->mem = malloc(IOFS_MAX_REQUEST)))
    return -ENOMEM;
  ssize_t n = iofs_session_read(iofs_transport_session_fd(), buf->mem, IOFS_MAX_REQUEST, NULL);
  if (n < 0 && errno == ENODEV) {
    *(void **)&leave = dlsym(libfuse, "fuse_session_exit");
    leave(session);
    return 0;
  }
  if (n < 0)
    return -errno;
  buf->size = n;
  buf->flags = 0;
  return n;
}
