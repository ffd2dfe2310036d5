/*
 * Namespaces: what is behind them is mapped into this process as a whole, so that data moves between
 * it and the client without a stop. Memory is anonymous and costs what was written; a file is
 * mapped shared; behind NOTHING reads find zeros and writes get lost.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nvme.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

#define PAGE 4096ull

struct nvme_ns *nvme_find_ns(struct nvme *nvme, uint32_t nsid) {
  for (uint32_t i = 0; i < nvme->n_namespaces; i++)
    if (nvme->namespaces[i].id == nsid)
      return &nvme->namespaces[i];
  return NULL;
}

static int complain(char *error, size_t size, const char *path, const char *why) {
  snprintf(error, size, "%s: %s", path, why);
  return -EINVAL;
}

/* The file of ns->size bytes, or of as many as it has if that is 0; it grows if it is shorter. */
static int open_file(struct nvme_ns *ns, const char *path, char *error, size_t size) {
  struct stat stat;
  uint64_t there;
  ns->fd = open(path, (ns->read_only ? O_RDONLY : O_RDWR | O_CREAT) | O_CLOEXEC, 0666);
  if (ns->fd < 0 || fstat(ns->fd, &stat))
    return complain(error, size, path, strerror(errno));
  there = (uint64_t)stat.st_size;
  if (S_ISBLK(stat.st_mode) ? ioctl(ns->fd, BLKGETSIZE64, &there) : !S_ISREG(stat.st_mode))
    return complain(error, size, path, "neither a file nor a block device");
  if (!ns->size)
    ns->size = there & ~((1ull << ns->lba_lg2) - 1);
  if (!ns->size)
    return complain(error, size, path, "it is empty, and there is no size");
  if (ns->size > there && (ns->read_only || S_ISBLK(stat.st_mode)))
    return complain(error, size, path, "it is shorter than the size");
  if (ns->size > there && ftruncate(ns->fd, (off_t)ns->size))
    return complain(error, size, path, strerror(errno));
  return 0;
}

int nvme_ns_open(struct nvme_ns *ns, const char *path, struct nvme *nvme, char *error,
                 size_t size) {
  int prot = PROT_READ | (ns->read_only ? 0 : PROT_WRITE);
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, err;
  if (ns->backing == NVME_NOTHING) {
    ns->memory = nvme->zeros;
    return 0;
  }
  if (ns->backing == NVME_FILE) {
    flags = MAP_SHARED;
    if ((err = open_file(ns, path, error, size)))
      return err;
  } else
    prot = PROT_READ | PROT_WRITE;
  void *memory = mmap(NULL, ns->size, prot, flags, ns->fd, 0);
  if (memory == MAP_FAILED) {
    snprintf(error, size, "a namespace of %llu bytes: %s", (unsigned long long)ns->size,
             strerror(errno));
    return -ENOMEM;
  }
  madvise(memory, ns->size, MADV_DONTDUMP);
  madvise(memory, ns->size, MADV_DONTFORK);
  ns->memory = memory;
  return 0;
}

void nvme_ns_close(struct nvme_ns *ns) {
  if (ns->memory && ns->backing != NVME_NOTHING)
    munmap(ns->memory, ns->size);
  if (ns->fd >= 0)
    close(ns->fd);
}

/* Let the file system make the pages now: its errors come here and not in the middle of a copy. */
static int populate(struct nvme_ns *ns, uint64_t offset, size_t length, int for_writing) {
  uint64_t start = offset & ~(PAGE - 1), end = (offset + length + PAGE - 1) & ~(PAGE - 1);
  int advice = for_writing ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
  while (madvise(ns->memory + start, end - start, advice)) {
    if (errno == EINTR || errno == EAGAIN)
      continue;
    return errno == EINVAL ? 0 : -errno; /* before Linux 5.14 */
  }
  return 0;
}

unsigned char *nvme_ns_bytes(struct nvme *nvme, struct nvme_ns *ns, uint64_t offset, size_t length,
                             int for_writing) {
  if (ns->backing == NVME_NOTHING)
    return for_writing ? nvme->sink : nvme->zeros;
  if (ns->backing == NVME_FILE && populate(ns, offset, length, for_writing))
    return NULL;
  return ns->memory + offset;
}

static int clear(struct nvme_ns *ns, uint64_t offset, uint64_t length) {
  if (!length || (ns->backing == NVME_FILE && populate(ns, offset, length, 1)))
    return length ? -EIO : 0;
  memset(ns->memory + offset, 0, length);
  return 0;
}

int nvme_ns_zero(struct nvme_ns *ns, uint64_t offset, uint64_t length) {
  uint64_t start = (offset + PAGE - 1) & ~(PAGE - 1), end = (offset + length) & ~(PAGE - 1);
  int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, err;
  if (ns->backing == NVME_NOTHING)
    return 0;
  if (ns->backing == NVME_FILE && !fallocate(ns->fd, mode, (off_t)offset, (off_t)length))
    return 0;
  if (start >= end || ns->backing == NVME_FILE)
    return clear(ns, offset, length);
  if ((err = clear(ns, offset, start - offset)) || (err = clear(ns, end, offset + length - end)))
    return err;
  return madvise(ns->memory + start, end - start, MADV_DONTNEED) ? -errno : 0;
}

int nvme_ns_flush(struct nvme_ns *ns) {
  if (ns->backing != NVME_FILE || ns->read_only)
    return 0;
  return fdatasync(ns->fd) ? -errno : 0;
}
