/* A record of frames in the format of libpcap, with times in nanoseconds (igb.h). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "igb.h"

#define BUFFER (64u << 10)

/* O_NONBLOCK while it is opened: a FIFO that nobody reads is an error, not a wait. */
static int open_file(const char *path, int new) {
  int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_APPEND | O_NONBLOCK | (new ? O_TRUNC : 0),
                0666);
  if (fd >= 0)
    fcntl(fd, F_SETFL, O_APPEND);
  return fd;
}

FILE *igb_record_open(const char *path, int new) {
  static const uint32_t header[] = {0xa1b23c4d, 4 << 16 | 2, 0, 0, 65535, 1}; /* Ethernet */
  int fd = open_file(path, new);
  FILE *file = fd < 0 ? NULL : fdopen(fd, "ab");
  if (!file) {
    if (fd >= 0)
      close(fd);
    return NULL;
  }
  setvbuf(file, NULL, _IOFBF, BUFFER);
  if (new && (fwrite(header, sizeof header, 1, file) != 1 || fflush(file))) {
    fclose(file);
    return NULL;
  }
  return file;
}

int igb_record_write(FILE *file, const struct igb_frames *frames) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  for (const struct igb_frame *frame = frames->first; frame; frame = frame->next) {
    uint32_t head[] = {(uint32_t)now.tv_sec, (uint32_t)now.tv_nsec, frame->length, frame->length};
    fwrite(head, sizeof head, 1, file);
    fwrite(frame->data, 1, frame->length, file);
  }
  return fflush(file) || ferror(file) ? -errno : 0;
}
