/*
 * A tap interface of the machine as the other end of a wire (igb.h). What the function sends is written to
 * it at once, or is lost if nobody takes it; what comes in is read by a thread of its own, which waits
 * with the next frame while the function has no room for one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "alloc.h"
#include "igb.h"

#define RETRY_MS 1 /* when there was no room */

struct igb_tap {
  int fd, stop_fd;
  int running;
  pthread_t thread;
  struct igb_end *end;
};

/* ---- what comes in ---------------------------------------------------------------------------- */

/* NULL: nothing, or nothing that fits. */
static struct igb_frame *read_frame(const struct igb_tap *tap) {
  struct igb_frame *frame = igb_frame_new(IGB_LONGEST + 1);
  if (!frame)
    return NULL;
  ssize_t length = read(tap->fd, frame->data, frame->length);
  if (length <= 0 || length > IGB_LONGEST) {
    igb_frame_free(frame);
    return NULL;
  }
  frame->length = (uint32_t)length;
  igb_frame_pad(frame);
  return frame;
}

/* Whether it is time to end; waits for something to read, or for some time. */
static int wait_for(const struct igb_tap *tap, int for_frame) {
  struct pollfd fds[] = {{.fd = tap->stop_fd, .events = POLLIN}, {.fd = tap->fd, .events = POLLIN}};
  poll(fds, for_frame ? 2 : 1, for_frame ? -1 : RETRY_MS);
  return fds[0].revents != 0;
}

static void *run(void *tap_) {
  const struct igb_tap *tap = tap_;
  while (!wait_for(tap, 1)) {
    struct igb_frame *frame = read_frame(tap);
    while (frame && igb_wire_bring(tap->end, frame))
      if (wait_for(tap, 0)) {
        igb_frame_free(frame);
        return NULL;
      }
  }
  return NULL;
}

int igb_tap_start(struct igb_tap *tap) {
  sigset_t all, before;
  if (tap->running)
    return 0;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the program's own threads */
  int err = pthread_create(&tap->thread, NULL, run, tap);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  tap->running = !err;
  return -err;
}

/* ---- what goes out ---------------------------------------------------------------------------- */

void igb_tap_send(struct igb_tap *tap, const struct igb_frames *frames) {
  for (const struct igb_frame *frame = frames->first; frame; frame = frame->next)
    if (write(tap->fd, frame->data, frame->length) < 0 && errno == EBADFD)
      return; /* the interface was taken away */
}

/* ---- open and close --------------------------------------------------------------------------- */

static int attach(int fd, const char *name) {
  struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
  if (strlen(name) >= sizeof request.ifr_name)
    return -ENAMETOOLONG;
  memcpy(request.ifr_name, name, strlen(name));
  return ioctl(fd, TUNSETIFF, &request) ? -errno : 0;
}

struct igb_tap *igb_tap_open(const char *name, struct igb_end *end, char *error, size_t size) {
  struct igb_tap *tap = alloc_zeroed(sizeof *tap);
  snprintf(error, size, "no memory");
  if (!tap)
    return NULL;
  tap->end = end;
  tap->stop_fd = eventfd(0, EFD_CLOEXEC);
  tap->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (tap->fd < 0 || tap->stop_fd < 0)
    snprintf(error, size, "tap: /dev/net/tun: %s", strerror(errno));
  else {
    int err = attach(tap->fd, name);
    if (!err)
      return tap;
    snprintf(error, size, "tap: %s: %s", name, strerror(-err));
  }
  igb_tap_close(tap);
  return NULL;
}

void igb_tap_close(struct igb_tap *tap) {
  if (tap->running) {
    eventfd_write(tap->stop_fd, 1);
    pthread_join(tap->thread, NULL);
  }
  if (tap->fd >= 0)
    close(tap->fd);
  if (tap->stop_fd >= 0)
    close(tap->stop_fd);
  alloc_free(tap);
}
