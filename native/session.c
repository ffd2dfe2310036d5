/*
 * How pyfuse3 comes to read our queue instead of /dev/fuse.
 *
 * pyfuse3's module calls fuse_session_mount(). This object is loaded with RTLD_GLOBAL before it, so
 * the one below is what it finds: instead of mounting (the transport has) it gives the session
 * custom input and output. libfuse changed the signature of fuse_session_custom_io() in 3.17.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <string.h>
#include <unistd.h>

#include "transport.h"

/* libfuse's struct fuse_custom_io up to what 3.14 has. */
struct custom_io {
  ssize_t (*writev)(int fd, struct iovec *iov, int count, void *userdata);
  ssize_t (*read)(int fd, void *buf, size_t size, void *userdata);
  ssize_t (*splice_receive)(int, off_t *, int, off_t *, size_t, unsigned, void *);
  ssize_t (*splice_send)(int, off_t *, int, off_t *, size_t, unsigned, void *);
};

struct fuse_session;

static int is_libfuse(struct dl_phdr_info *info, size_t size, void *found) {
  (void)size;
  const char *base = strrchr(info->dlpi_name, '/');
  if (strncmp(base ? base + 1 : info->dlpi_name, "libfuse3.so", 11) != 0)
    return 0;
  *(void **)found = dlopen(info->dlpi_name, RTLD_NOLOAD | RTLD_NOW);
  return 1;
}

__attribute__((visibility("default"))) int fuse_session_mount(struct fuse_session *session,
                                                              const char *path) {
  static const struct custom_io io = {iofs_session_writev, iofs_session_read, NULL, NULL};
  void *libfuse = NULL;
  int (*since_3_17)(struct fuse_session *, const struct custom_io *, size_t, int);
  int (*before)(struct fuse_session *, const struct custom_io *, int);

  (void)path;
  dl_iterate_phdr(is_libfuse, &libfuse);
  if (!libfuse)
    return -ENOSYS;
  /* The session closes its descriptor when it is destroyed. */
  int fd = fcntl(iofs_transport_session_fd(), F_DUPFD_CLOEXEC, 0);
  if (fd < 0)
    return -errno;
  *(void **)&since_3_17 = dlsym(libfuse, "fuse_session_custom_io_317");
  *(void **)&before = dlsym(libfuse, "fuse_session_custom_io");
  if (since_3_17)
    return since_3_17(session, &io, sizeof io, fd);
  return before ? before(session, &io, fd) : -ENOSYS;
}
