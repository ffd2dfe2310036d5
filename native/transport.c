/*
 * /dev/fuse: where each request goes (see "transport" in serve.h).
 *
 * Not here: who reads the device (readers.c), how libfuse comes to read our queue (session.c), the
 * ioctls that wait (ioctls.c), what an ioctl means (Python; fast_ioctl.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fast.h"
#include "fuse_wire.h"
#include "job.h"
#include "keeper.h"
#include "placement.h"
#include "readers.h"
#include "serve.h"
#include "transport.h"

struct message {
  struct message *next;
  size_t length;
  unsigned char bytes[];
};

/* A request in pyfuse3's hands whose answer we patch or count. */
struct watched {
  struct watched *next;
  uint64_t unique, nodeid;
  uint32_t opcode;
};

_Atomic uint64_t iofs_live_requests;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int fuse_fd = -1, stop_fd = -1, session_fd = -1; /* fuse_fd: or the keeper's socket */
static pid_t keeper;
static dev_t our_dev;
static char *mount_path;
static _Atomic int ended, passthrough, page_cache, fast_enabled = 1;
static struct {
  _Atomic uint64_t ioctls_by_readers, ioctls_by_python, ioctls_handed_over;
  _Atomic uint64_t reads_by_readers, reads_by_python, others;
} counts;
static unsigned kernel_minor;
static struct message *messages, **messages_tail = &messages;
static struct watched *watched;

static void signal_fd(int fd) { eventfd_write(fd, 1); }

/* An answer is one message to the keeper; its socket may be full, the device never is. */
static ssize_t put(const struct iovec *iov, int count) {
  struct pollfd room = {fuse_fd, POLLOUT, 0};
  ssize_t n;
  while ((n = writev(fuse_fd, iov, count)) < 0 && errno == EAGAIN && keeper)
    poll(&room, 1, -1);
  return n;
}

/* ---- answers --------------------------------------------------------------------------------- */

int iofs_answer(uint64_t unique, int error, const void *body, size_t length) {
  struct fuse_out_header header = {sizeof header + length, error, unique};
  struct iovec iov[2] = {{&header, sizeof header}, {(void *)(uintptr_t)body, length}};
  iofs_live_requests--;
  return put(iov, 2) < 0 ? -errno : 0;
}

static struct watched *take_watched(uint64_t unique) {
  for (struct watched **at = &watched; *at; at = &(*at)->next)
    if ((*at)->unique == unique) {
      struct watched *found = *at;
      *at = found->next;
      return found;
    }
  return NULL;
}

/* Ask for what libfuse 3.14 does not know: passthrough, or else mmap of uncached files. */
static void patch_init(struct iofs_init_out *out) {
  out->flags &= ~IOFS_FUSE_SPLICE_FLAGS;
  out->flags |= IOFS_FUSE_INIT_EXT;
  if (passthrough) {
    out->flags2 |= IOFS_FUSE_PASSTHROUGH_2;
    out->max_stack_depth = 1;
  }
  if (page_cache) {
    out->flags2 |= IOFS_FUSE_DIRECT_IO_ALLOW_MMAP_2;
    out->flags &= ~FUSE_ASYNC_READ; /* a thread of ours that touches a page needs no free slot */
    if (out->max_write > KEEPER_MAX_DATA)
      out->max_write = KEEPER_MAX_DATA;
  }
  if (out->minor < 40)
    out->minor = kernel_minor < 40 ? kernel_minor : 40;
}

/* What is in a body of another size than this, we have not asked for. */
static void patch(const struct watched *request, void *body, size_t length) {
  if (request->opcode == FUSE_INIT && length == sizeof(struct iofs_init_out))
    patch_init(body);
  else
    iofs_patch(request->opcode, request->nodeid, body, length);
}

static ssize_t length_of(const struct iovec *iov, int count) {
  ssize_t length = 0;
  while (count--)
    length += iov[count].iov_len;
  return length;
}

/* An answer of libfuse's on its way to the kernel. A notification has unique 0. */
ssize_t iofs_session_writev(int fd, struct iovec *iov, int count, void *unused) {
  (void)fd;
  (void)unused;
  struct fuse_out_header *header = iov[0].iov_base;
  uint64_t unique = header->unique;
  pthread_mutex_lock(&lock);
  struct watched *request = unique ? take_watched(unique) : NULL;
  pthread_mutex_unlock(&lock);
  if (request && request->opcode == FUSE_WRITE && !iofs_ioctls_remove(unique)) {
    free(request); /* its caller has been let go */
    return length_of(iov, count);
  }
  if (request && !header->error && count == 2)
    patch(request, iov[1].iov_base, iov[1].iov_len); /* libfuse's own memory, until we return */
  if (unique)
    iofs_live_requests--;
  ssize_t n = put(iov, count);
  int error = errno;
  if (request && request->opcode == FUSE_RELEASE)
    iofs_ioctls_release_answered();
  free(request);
  errno = error;
  return n;
}

/* ---- the hand-over to libfuse ---------------------------------------------------------------- */

ssize_t iofs_session_read(int fd, void *buf, size_t size, void *unused) {
  (void)unused;
  eventfd_t one;
  pthread_mutex_lock(&lock);
  struct message *message = messages;
  if (message && !(messages = message->next))
    messages_tail = &messages;
  int over = ended;
  pthread_mutex_unlock(&lock);
  if (!message) {
    errno = over ? ENODEV : EINTR; /* pyfuse3 asks again after EINTR */
    return -1;
  }
  eventfd_read(fd, &one);
  ssize_t n = message->length;
  if (message->length > size) {
    errno = EIO;
    n = -1;
  } else {
    memcpy(buf, message->bytes, n);
  }
  free(message);
  return n;
}

static void forward(const void *bytes, size_t length) {
  struct message *message = malloc(sizeof *message + length);
  if (!message) {
    iofs_answer(((const struct fuse_in_header *)bytes)->unique, -ENOMEM, NULL, 0);
    return;
  }
  counts.others++;
  message->next = NULL;
  message->length = length;
  memcpy(message->bytes, bytes, length);
  pthread_mutex_lock(&lock);
  *messages_tail = message;
  messages_tail = &message->next;
  pthread_mutex_unlock(&lock);
  signal_fd(session_fd);
}

static void forward_watched(const struct fuse_in_header *in, size_t length) {
  struct watched *request = malloc(sizeof *request);
  if (!request) {
    iofs_answer(in->unique, -ENOMEM, NULL, 0);
    return;
  }
  pthread_mutex_lock(&lock);
  *request = (struct watched){watched, in->unique, in->nodeid, in->opcode};
  watched = request;
  pthread_mutex_unlock(&lock);
  if (in->opcode == FUSE_RELEASE)
    iofs_ioctls_release_arrived();
  forward(in, length);
}

/* ---- reads ----------------------------------------------------------------------------------- */

static void take_read(const struct fuse_in_header *in, size_t length) {
  const struct fuse_read_in *arg = (const void *)(in + 1);
  uint8_t bytes[IOFS_MAX_FAST_READ];
  size_t n = 0;
  if (fast_enabled && iofs_ioctls_releases_are_answered())
    n = fast_read(arg->fh, arg->offset, arg->size, bytes);
  if (!n) {
    counts.reads_by_python++;
    forward(in, length);
    return;
  }
  counts.reads_by_readers++;
  iofs_answer(in->unique, 0, bytes, n);
}

/* ---- ioctls ---------------------------------------------------------------------------------- */

/* Bytes of the payload, not into the next page, which Linux might never touch, and the secret of who
 * is about to map. */
static void fetch(struct iofs_ioctl *ioctl) {
  size_t length = 4096 - ioctl->arg % 4096;
  if (length > sizeof ioctl->payload)
    length = sizeof ioctl->payload;
  if (fast_enabled && fast_maps(ioctl->cmd))
    ioctl->secret_at = fast_secret_at(ioctl->fh, ioctl->tid);
  _Static_assert(sizeof ioctl->secret == IOFS_SECRET, "one size");
  size_t n_secret = ioctl->secret_at ? sizeof ioctl->secret : 0;
  ssize_t got = iofs_client_read_both(ioctl->tid, ioctl->arg, ioctl->payload, length,
                                      ioctl->secret_at, ioctl->secret, n_secret);
  if (got < (ssize_t)(length + n_secret))
    ioctl->secret_at = 0;
  ioctl->prefetched = got < 0 ? 0 : (size_t)got < length ? (uint32_t)got : (uint32_t)length;
}

static void answer_ioctl(uint64_t unique, int32_t result) {
  struct fuse_ioctl_out out = {.result = result};
  iofs_answer(unique, 0, &out, sizeof out);
}

/* Carry it out, if it is a plain one: 1. */
static int finish(struct pending *pending, const struct iofs_ioctl *ioctl) {
  int32_t result;
  if (!fast_enabled || !fast_is_hot(ioctl->cmd) || !iofs_ioctls_is_due(pending) ||
      !fast_ioctl(ioctl, &result))
    return 0;
  counts.ioctls_by_readers++;
  if (iofs_ioctls_finish(pending))
    answer_ioctl(ioctl->unique, result);
  return 1;
}

static void hand_over(struct pending *pending, const struct iofs_ioctl *ioctl) {
  counts.ioctls_by_python++;
  counts.ioctls_handed_over++;
  iofs_ioctls_fetched(pending, ioctl);
}

/* Another reader goes on if this one does not come back from the client's memory. */
static void take_ioctl(struct reader *me, const struct fuse_in_header *in) {
  const struct fuse_ioctl_in *arg = (const void *)(in + 1);
  struct iofs_ioctl ioctl = {.unique = in->unique,
                             .nodeid = in->nodeid,
                             .fh = arg->fh,
                             .arg = arg->arg,
                             .cmd = arg->cmd,
                             .uid = in->uid,
                             .gid = in->gid,
                             .tid = in->pid,
                             .compat = !!(arg->flags & FUSE_IOCTL_COMPAT)};
  struct pending *pending = iofs_ioctls_add(in->unique, in->pid);
  if (!pending) {
    iofs_answer(in->unique, -ENOMEM, NULL, 0);
    return;
  }
  if (!reader_leave(me)) { /* the last one keeps out of clients' memory: Python's jobs read it */
    hand_over(pending, &ioctl);
    return;
  }
  fetch(&ioctl);
  if (finish(pending, &ioctl))
    return;
  if (visit(me, pending, &ioctl))
    counts.ioctls_by_python++;
  else
    hand_over(pending, &ioctl);
}

int iofs_transport_answer_ioctl(uint64_t unique, int32_t result) {
  struct fuse_ioctl_out out = {.result = result};
  return iofs_ioctls_remove(unique) ? iofs_answer(unique, 0, &out, sizeof out) : -ENOENT;
}

void iofs_fast_enable(int enabled) { fast_enabled = enabled; }

void iofs_fast_counts(struct iofs_fast_counts *out) {
  *out = (struct iofs_fast_counts){
      .ioctls_by_readers = counts.ioctls_by_readers,
      .ioctls_by_python = counts.ioctls_by_python,
      .ioctls_handed_over = counts.ioctls_handed_over,
      .reads_by_readers = counts.reads_by_readers,
      .reads_by_python = counts.reads_by_python,
      .others = counts.others,
  };
}

/* ---- readers --------------------------------------------------------------------------------- */

static void take_init(const struct fuse_in_header *in, size_t length) {
  const struct fuse_init_in *init = (const void *)(in + 1);
  const uint32_t *words = (const void *)init;
  int extended = (init->flags & IOFS_FUSE_INIT_EXT) && length >= sizeof *in + 5 * sizeof *words;
  kernel_minor = init->minor;
  passthrough = extended && (words[4] & IOFS_FUSE_PASSTHROUGH_2) && !keeper;
  page_cache = extended && (words[4] & IOFS_FUSE_DIRECT_IO_ALLOW_MMAP_2) && keeper;
  forward_watched(in, length);
}

static int is_our_thread(int tid) { return !tgkill(getpid(), tid, 0); }

/* One request, with the turn held. */
static void handle(struct reader *me, void *request, size_t length) {
  const struct fuse_in_header *in = request;
  const struct fuse_ioctl_in *ioctl_in = (const void *)(in + 1);
  struct {
    struct fuse_ioctl_out out;
    uint64_t fh;
  } identity = {{0}, 0};

  if (length < sizeof *in)
    return;
  switch (in->opcode) {
  case FUSE_FORGET: /* no answer is expected */
  case FUSE_BATCH_FORGET:
    forward(in, length);
    return;
  case FUSE_INTERRUPT:
    iofs_ioctls_signalled(((const struct fuse_interrupt_in *)(in + 1))->unique);
    return;
  }
  iofs_live_requests++;
  switch (in->opcode) {
  case FUSE_FLUSH: /* close(2) of a duplicate of ours must not wait for ourselves */
    iofs_answer(in->unique, -ENOSYS, NULL, 0);
    return;
  case FUSE_IOCTL:
    if (ioctl_in->cmd == FS_IOC_GETFLAGS || ioctl_in->cmd == FS_IOC_FSGETXATTR) {
      /* Not the client asks, who does not wait for a payload. */
      iofs_answer(in->unique, -ENOTTY, NULL, 0);
    } else if (ioctl_in->cmd == IOFS_IDENTIFY && is_our_thread(in->pid)) {
      identity.fh = ioctl_in->fh;
      iofs_answer(in->unique, 0, &identity, sizeof identity);
    } else if (ioctl_in->flags & FUSE_IOCTL_DIR) {
      iofs_answer(in->unique, -ENOTTY, NULL, 0);
    } else {
      take_ioctl(me, in);
    }
    return;
  case FUSE_FALLOCATE: /* as of a device; libfuse would say that there is no such call */
    iofs_answer(in->unique, -ENODEV, NULL, 0);
    return;
  case FUSE_INIT:
    take_init(in, length);
    return;
  case FUSE_OPEN:
  case FUSE_RELEASE:
  case FUSE_LOOKUP:
  case FUSE_GETATTR:
  case FUSE_SETATTR:
  case FUSE_READDIRPLUS:
    forward_watched(in, length);
    return;
  case FUSE_READ:
    take_read(in, length);
    return;
  case FUSE_WRITE: /* an attribute's may wait for as long as others like */
    if (in->nodeid & IOFS_ATTRIBUTE && iofs_ioctls_lend(in->unique, in->pid))
      forward_watched(in, length);
    else
      forward(in, length);
    return;
  default:
    forward(in, length);
  }
}

static void on_end(void) {
  ended = 1;
  signal_fd(session_fd);
}

/* ---- mount and unmount ----------------------------------------------------------------------- */

int iofs_transport_session_fd(void) { return session_fd; }

dev_t iofs_transport_device(void) { return our_dev; }

static int open_fds(int device) {
  fuse_fd = device >= 0 ? device : open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fuse_fd < 0 || fcntl(fuse_fd, F_SETFL, O_NONBLOCK) < 0)
    return -errno;
  stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  session_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
  return stop_fd < 0 || session_fd < 0 ? -EMFILE : iofs_ioctls_open();
}

/* The device number of the mount, from what the kernel knows already: nobody answers it yet. */
static int learn_device(void) {
  struct statx stx;
  if (statx(AT_FDCWD, mount_path, AT_STATX_DONT_SYNC, 0, &stx) < 0)
    return -errno;
  our_dev = makedev(stx.stx_dev_major, stx.stx_dev_minor);
  iofs_mm_forbid_device(stx.stx_dev_major, stx.stx_dev_minor); /* BARs are no memory to map */
  return 0;
}

static void close_fds(void) {
  int *fds[] = {&fuse_fd, &stop_fd, &session_fd};
  for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
    if (*fds[i] >= 0)
      close(*fds[i]);
    *fds[i] = -1;
  }
  iofs_ioctls_close();
  if (keeper)
    keeper_join(keeper);
  keeper = 0;
}

static int start(void) {
  int r = learn_device();
  if (!r && !mount_may_pass_through())
    r = keeper_start(fuse_fd, &fuse_fd, &keeper);
  if (!r)
    r = iofs_side_start();
  if (!r && !(r = readers_start(fuse_fd, stop_fd, handle, on_end)))
    return 0;
  iofs_side_stop();
  return r;
}

int iofs_transport_mount(const char *path) { return iofs_transport_adopt(path, -1); }

int iofs_transport_adopt(const char *path, int device) {
  if (mount_path)
    return -EBUSY;
  mount_path = strdup(path);
  if (!mount_path)
    return -ENOMEM;
  ended = passthrough = page_cache = 0;
  int r = open_fds(device);
  if (!r && device < 0)
    r = mount_device(fuse_fd, mount_path);
  if (!r && (r = start()))
    umount2(mount_path, MNT_DETACH);
  if (r) {
    close_fds();
    free(mount_path);
    mount_path = NULL;
  }
  return r;
}

/* Forget what nobody will answer any more. */
static void drop_queues(void) {
  while (messages) {
    struct message *message = messages;
    messages = message->next;
    free(message);
  }
  messages_tail = &messages;
  while (watched)
    free(take_watched(watched->unique));
  iofs_patch_drop_all();
  iofs_live_requests = 0;
}

void iofs_transport_unmount(void) {
  if (!mount_path)
    return;
  iofs_side_refuse();
  umount2(mount_path, MNT_DETACH);
  signal_fd(stop_fd);
  readers_stop(2); /* one in a client's stuck page ends with the client, and finds its ioctl gone */
  pthread_mutex_lock(&lock);
  drop_queues();
  close_fds(); /* the connection ends here, and so does whoever waits for an answer */
  free(mount_path);
  mount_path = NULL;
  pthread_mutex_unlock(&lock);
  iofs_side_stop();
}

int iofs_transport_has_passthrough(void) { return passthrough; }

int iofs_transport_has_page_cache(void) { return page_cache; }

int iofs_transport_share(uint64_t nodeid, int fd, const uint64_t (*parts)[2], size_t n) {
  return page_cache ? keeper_share(fuse_fd, nodeid, fd, parts, n) : -EOPNOTSUPP;
}


int iofs_transport_set_backing(uint64_t nodeid, int fd) {
  return passthrough ? iofs_patch_set_backing(fuse_fd, nodeid, fd) : -EOPNOTSUPP;
}

void iofs_transport_drop_backing(uint64_t nodeid) { iofs_patch_drop_backing(fuse_fd, nodeid); }
