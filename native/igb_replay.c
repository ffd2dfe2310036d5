/*
 * The frames of a file in the format of libpcap, as if they came over a wire (igb.h).
 *
 * The first four bytes say in which order those of a number are, and what times count, which do not
 * matter here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "alloc.h"
#include "igb.h"

#define MICROSECONDS 0xa1b2c3d4u
#define NANOSECONDS 0xa1b23c4du
#define ETHERNET 1u

struct igb_replay {
  FILE *file;
  int is_swapped;
};

struct file_head {
  uint32_t magic, version, zone, accuracy, longest, link;
};

struct frame_head {
  uint32_t seconds, fraction;
  uint32_t length, length_on_wire; /* bytes that are in the file; that there were */
};

static uint32_t number(const struct igb_replay *replay, uint32_t raw) {
  return replay->is_swapped ? __builtin_bswap32(raw) : raw;
}

/* A line that says what is wrong; NULL: nothing. */
static const char *read_head(struct igb_replay *replay) {
  struct file_head head;
  if (fread(&head, sizeof head, 1, replay->file) != 1)
    return ferror(replay->file) ? strerror(errno) : "too short";
  uint32_t swapped = __builtin_bswap32(head.magic);
  replay->is_swapped = swapped == MICROSECONDS || swapped == NANOSECONDS;
  if (!replay->is_swapped && head.magic != MICROSECONDS && head.magic != NANOSECONDS)
    return "not in libpcap's format";
  return (number(replay, head.link) & 0xffff) == ETHERNET ? NULL : "its frames are not Ethernet's";
}

static FILE *open_file(const char *path, const char **why) {
  struct stat stat;
  FILE *file = NULL;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO would wait for its writer */
  if (fd < 0 || fstat(fd, &stat))
    *why = strerror(errno);
  else if (!S_ISREG(stat.st_mode))
    *why = "not a regular file";
  else if (!(file = fdopen(fd, "rb")))
    *why = strerror(errno);
  if (!file && fd >= 0)
    close(fd);
  return file;
}

struct igb_replay *igb_replay_open(const char *path, const char **why) {
  struct igb_replay *replay = alloc_zeroed(sizeof *replay);
  *why = "no memory";
  if (!replay)
    return NULL;
  if ((replay->file = open_file(path, why)) && !(*why = read_head(replay)))
    return replay;
  igb_replay_close(replay);
  return NULL;
}

struct igb_frame *igb_replay_next(struct igb_replay *replay, const char **why) {
  struct frame_head head;
  size_t got = fread(&head, 1, sizeof head, replay->file);
  *why = NULL;
  if (!got && !ferror(replay->file))
    return NULL;
  uint32_t length = number(replay, head.length);
  struct igb_frame *frame = NULL;
  if (ferror(replay->file))
    *why = strerror(errno);
  else if (got < sizeof head)
    *why = "it is cut off";
  else if (!length || length > IGB_LONGEST)
    *why = "a frame is empty or too long";
  else if (!(frame = igb_frame_new(length)))
    *why = "no memory";
  else if (fread(frame->data, length, 1, replay->file) != 1) {
    *why = ferror(replay->file) ? strerror(errno) : "it is cut off";
    igb_frame_free(frame);
    return NULL;
  }
  if (frame)
    igb_frame_pad(frame);
  return frame;
}

void igb_replay_close(struct igb_replay *replay) {
  if (replay && replay->file)
    fclose(replay->file);
  alloc_free(replay);
}
