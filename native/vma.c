/* What a client has mapped where: one question for each mapping, none for each page. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "mm.h"

/* PROCMAP_QUERY of <linux/fs.h>, which is younger (Linux 6.11) than some systems' headers. */
struct procmap_query {
  uint64_t size, query_flags, query_addr;
  uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
  uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
  uint64_t vma_name_addr, build_id_addr;
};
#define COVERING_OR_NEXT 0x10
#define PROCMAP_QUERY _IOWR('f', 17, struct procmap_query)

static _Atomic int has_no_query;
static _Atomic uint64_t n_lookups;

/* 0, or -errno; ENOTTY: this kernel cannot be asked. */
static int ask(const struct iofs_mm *mm, struct procmap_query *query) {
  int result;
  if (atomic_load_explicit(&has_no_query, memory_order_relaxed))
    return -ENOTTY;
  do
    result = ioctl(mm->maps_fd, PROCMAP_QUERY, query);
  while (result < 0 && errno == EINTR);
  if (result < 0 && errno == ENOTTY)
    atomic_store(&has_no_query, 1);
  return result < 0 ? -errno : 0;
}

int mm_find_vma(const struct iofs_mm *mm, uint64_t address, struct vma *out) {
  struct procmap_query query = {.size = sizeof query, .query_addr = address};
  atomic_fetch_add_explicit(&n_lookups, 1, memory_order_relaxed);
  int err = ask(mm, &query);
  if (err == -ENOTTY)
    return mm_find_vma_in_text(mm, address, out);
  if (err) /* ENOENT: nothing there; ESRCH: the address space is no more */
    return -EFAULT;
  *out = (struct vma){
      .start = query.vma_start,
      .end = query.vma_end,
      .offset = query.vma_offset,
      .ino = query.inode,
      .flags = (uint32_t)query.vma_flags & (VMA_READ | VMA_WRITE | VMA_EXEC | VMA_SHARED),
      .major = query.dev_major,
      .minor = query.dev_minor,
  };
  return 0;
}

uint64_t mm_n_lookups(void) { return n_lookups; }

int iofs_mm_alive(const struct iofs_mm *mm) {
  struct procmap_query query = {.size = sizeof query, .query_flags = COVERING_OR_NEXT};
  int err = ask(mm, &query);
  char byte;
  if (err == -ENOTTY) /* the maps of an address space without users are empty */
    return pread(mm->maps_fd, &byte, 1, 0) == 1;
  return !err;
}

/* One line of the maps file. */
static int parse(const char *line, struct vma *out) {
  char read, write, exec, shared;
  struct vma vma = {0};
  if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %c%c%c%c %" SCNx64 " %x:%x %" SCNu64, &vma.start,
             &vma.end, &read, &write, &exec, &shared, &vma.offset, &vma.major, &vma.minor,
             &vma.ino) != 10)
    return -EFAULT;
  vma.flags = (read == 'r' ? VMA_READ : 0) | (write == 'w' ? VMA_WRITE : 0) |
              (exec == 'x' ? VMA_EXEC : 0) | (shared == 's' ? VMA_SHARED : 0);
  *out = vma;
  return 0;
}

int mm_find_vma_in_text(const struct iofs_mm *mm, uint64_t address, struct vma *out) {
  char buf[8192];
  size_t have = 0;
  off_t at = 0;
  struct vma vma;
  for (;;) {
    ssize_t got = pread(mm->maps_fd, buf + have, sizeof buf - 1 - have, at);
    if (got <= 0)
      return -EFAULT;
    at += got;
    have += (size_t)got;
    buf[have] = 0;
    char *line = buf, *end;
    for (; (end = strchr(line, '\n')); line = end + 1) {
      *end = 0;
      if (parse(line, &vma) || vma.start > address)
        return -EFAULT; /* mappings come in order */
      if (address < vma.end) {
        *out = vma;
        return 0;
      }
    }
    have -= (size_t)(line - buf);
    memmove(buf, line, have);
  }
}
