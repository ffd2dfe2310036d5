/*
 * Address spaces of clients, inside the core: finding what is mapped where (mm.c, vma.c), and
 * moving bytes (mm_move.c).
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
  uint64_t secret_at;      /* where exec has left random bytes; 0: unknown */
  unsigned char secret[16]; /* what was there when the handle was made */
  _Atomic uint64_t secret_seen; /* in ns */
  _Atomic uint64_t rights;      /* of mm_move.c */
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

/* Memory of a client: `length` bytes at `address`. */
struct mm_span {
  uint64_t address, length;
};

/* Move the bytes of all spans, one after the other, into buf, or out of it (write), whatever the
 * protection of the pages says. EFAULT; *done: bytes before the page that failed. */
int mm_move(struct iofs_mm *mm, const struct mm_span *spans, size_t n, void *buf, int write,
            uint64_t *done);

int mm_read(struct iofs_mm *mm, uint64_t address, void *buf, size_t length);
int mm_write(struct iofs_mm *mm, uint64_t address, const void *buf, size_t length);

/* Remember what exec has left in the memory of a new handle, so that mm_move() knows it again. */
void mm_learn_secret(struct iofs_mm *mm);

#endif
