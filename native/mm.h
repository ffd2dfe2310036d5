/*
 * Address spaces of clients, inside the core: finding what is mapped where (mm.c, vma.c), moving
 * bytes (mm_move.c), and which processes run in one (mm_users.c).
 *
 * A handle holds two files of /proc that the kernel binds to the address space itself: mem, to
 * read and write, and maps, to ask. Handles of one address space are one object, also if several
 * processes (vfork, CLONE_VM) share it.
 */
#ifndef IOFS_MM_H
#define IOFS_MM_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "iommufs.h"

#define PAGE_LG2 12
#define PAGE_SIZE 4096ull

#define MAX_USERS 8

/* A process that has run in an address space. Whether it does still, iofs_mm_has() tells. */
struct mm_user {
  int tgid, pidfd;
};

struct iofs_mm {
  struct iofs_mm *next;
  uint32_t refs; /* under the lock of mm.c */
  int mem_fd, maps_fd;
  struct mm_user users[MAX_USERS]; /* under the lock of mm.c */
  unsigned n_users;
  _Atomic int process; /* one of them that ran in it when last looked for, or a thread of it */
  uint64_t locked;        /* pages charged in mode MM; under the lock of charge.c */
  struct { /* the last RLIMIT_MEMLOCK that was seen of a process; under the lock of charge.c */
    int tgid;
    uint64_t bytes;
  } limits[MAX_USERS];
  unsigned n_limits; /* so many have been known; of more than there is room for, the latest */
  size_t auxv_size;
  unsigned char auxv[512]; /* addresses chosen by exec: tells address spaces apart */
  uint64_t secret_at;      /* where exec has left random bytes; 0: unknown */
  unsigned char secret[IOFS_SECRET]; /* what was there when the handle was made */
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

/* Whether a thread has in its memory what exec has left in this one. A process that was seen in it
 * is in another one only after an exec, so for its threads that settles it; a fork has it too. It
 * touches the thread's memory, which may keep it waiting. */
int mm_has_secret(const struct iofs_mm *mm, int tid);
int mm_is_secret(const struct iofs_mm *mm, const void *secret); /* what was read there */
uint64_t mm_secret_at(const unsigned char *auxv, size_t size); /* 0: nowhere */

/* The auxiliary vector of a thread's process: its size, or -errno; -ESRCH for a zombie. */
ssize_t mm_auxv_of(int tid, unsigned char *auxv, size_t size);

/* Find a process, or a thread of one, that runs in it, for what /proc tells of processes only:
 * mm->process. 1: it is another one than before. It may be wrong where addresses are not randomized. */
int mm_look_again(struct iofs_mm *mm);

/* Under the lock of mm.c: */
int mm_has_user(struct iofs_mm *mm, int tgid); /* the process has run in it, and not ended */
int mm_may_run(struct iofs_mm *mm, int tgid); /* by its addresses, which may be those of another */
int mm_is_shared_with(struct iofs_mm *mm, int tid); /* of one that is alive, and has its secret */
int mm_find_process(struct iofs_mm *mm); /* as mm_look_again() */
int mm_add_user(struct iofs_mm *mm, int tgid); /* ENOMEM; if there are too many, nothing happens */
void mm_add_parents(struct iofs_mm *mm, int tid); /* those that share it */
void mm_forget_users(struct iofs_mm *mm);

#endif
