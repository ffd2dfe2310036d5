/*
 * Address spaces of clients, inside the core: finding what is mapped where, and moving bytes.
 *
 * A handle holds two files of /proc that the kernel binds to the address space itself: mem, to
 * read and write, and maps, to ask. Handles of one address space are one object.
 */
#ifndef IOFS_MM_H
#define IOFS_MM_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "iommufs.h"

#define PAGE_LG2 12
#define PAGE_SIZE 4096ull

struct iofs_mm {
  struct iofs_mm *next;
  uint32_t refs; /* under the lock of mm.c */
  int tgid, mem_fd, maps_fd;
  uint64_t locked;        /* pages charged in mode MM; under the lock of charge.c */
  uint64_t memlock_limit; /* bytes, the last RLIMIT_MEMLOCK seen; under the lock of charge.c */
  size_t auxv_size;
  unsigned char auxv[512]; /* addresses chosen by exec: tells address spaces apart */
};

enum vma_flags { VMA_READ = 1, VMA_WRITE = 2, VMA_EXEC = 4, VMA_SHARED = 8 };

struct vma {
  uint64_t start, end; /* exclusive */
  uint64_t offset;     /* in the file, of start */
  uint64_t ino;        /* 0: no file */
  uint32_t flags, major, minor;
};

/* What is mapped at `address`: EFAULT if nothing, or if the address space is no more. */
int mm_find_vma(const struct iofs_mm *mm, uint64_t address, struct vma *out);

/* How often that was asked since the process began: what a pin costs. */
uint64_t mm_n_lookups(void);

/* The same by reading the text of the maps file, for kernels that cannot be asked. */
int mm_find_vma_in_text(const struct iofs_mm *mm, uint64_t address, struct vma *out);

/* Whether iofs_mm_forbid_device() named the device. */
int mm_is_forbidden(uint32_t major, uint32_t minor);

/* Move all bytes, whatever the protection of the pages says: EFAULT, some being moved by then. */
int mm_read(const struct iofs_mm *mm, uint64_t address, void *buf, size_t length);
int mm_write(const struct iofs_mm *mm, uint64_t address, const void *buf, size_t length);

#endif
