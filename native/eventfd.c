/*
 * Signalling eventfds of clients.
 *
 * write(2) to an eventfd waits while its counter is full, unless the client made it non-blocking,
 * and the flag is the client's to keep. The kernel's own eventfd_signal() never waits; from outside
 * it is reached through the notification of an AIO request, so each signal is a request that is
 * done at once: one byte of a file that lies in memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "iommufs.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static aio_context_t context;
static int source = -1;

static void init(void) {
  source = memfd_create("iommufs-signal", MFD_CLOEXEC);
  if (source < 0 || ftruncate(source, 1) || syscall(SYS_io_setup, 1, &context)) {
    if (source >= 0)
      close(source);
    source = -1;
  }
}

/* Where there is no AIO: right unless the client fills the counter at this very moment. */
static int signal_by_write(int fd) {
  struct pollfd room = {.fd = fd, .events = POLLOUT};
  if (poll(&room, 1, 0) < 0)
    return -errno;
  if (room.revents & POLLOUT && eventfd_write(fd, 1))
    return -errno;
  return 0;
}

int iofs_eventfd_signal(int fd) {
  pthread_once(&once, init);
  if (source < 0)
    return signal_by_write(fd);
  char byte;
  struct iocb request = {
      .aio_lio_opcode = IOCB_CMD_PREAD,
      .aio_fildes = source,
      .aio_buf = (uintptr_t)&byte,
      .aio_nbytes = 1,
      .aio_flags = IOCB_FLAG_RESFD,
      .aio_resfd = fd,
  };
  struct iocb *requests[] = {&request};
  struct io_event done;
  pthread_mutex_lock(&lock);
  int result = syscall(SYS_io_submit, context, 1, requests) < 0 ? -errno : 0;
  if (result == 0)
    while (syscall(SYS_io_getevents, context, 1, 1, &done, NULL) < 0 && errno == EINTR)
      ;
  pthread_mutex_unlock(&lock);
  return result;
}
