/*
 * What a reader may finish alone: fast.c keeps what Python has published of open files, fast_*.c
 * carry calls out. Everything unusual, every failure among it, is left to Python, whole.
 */
#ifndef IOFS_FAST_H
#define IOFS_FAST_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "serve.h"
#include "thread_identity.h"

enum { FAST_N_IRQ_INDEXES = 5 };

/* The answer to a call that asks what something is. */
struct fast_answer {
  struct fast_answer *next;
  uint32_t cmd, index;
  uint32_t cap_at; /* where cap_offset lies in the structure; 0: it has none */
  uint32_t length, chain_length;
  uint8_t bytes[]; /* the structure, then the chain */
};

/* What reading a part of the file gives (see iofs_fast_add_window()). */
struct fast_window {
  struct fast_window *next;
  uint64_t position, length;
  uint32_t flags;
  const uint8_t *own, *kept, *mask;
};

struct fast_source {
  struct fast_source *next;
  int tgid;
  struct iofs_mm *mm;
};

struct iofs_fast {
  pthread_mutex_t lock; /* guards all below */
  _Atomic uint32_t refs;
  struct iofs_iopt **iopts; /* by id */
  size_t n_iopts;
  struct iofs_iopt *compat; /* what VFIO's container calls work on, or NULL */
  struct fast_source *sources;
  struct known_threads threads;
  uint32_t charge_mode; /* of callers without CAP_IPC_LOCK */
  struct fast_answer *answers;
  struct fast_window *windows;
  int memory_enabled;
  struct {
    int32_t *fds; /* -1: none */
    uint32_t n;
  } triggers[FAST_N_IRQ_INDEXES];
};

/* The open file of a number, or NULL: nothing is published of it. It is to be put. */
struct iofs_fast *fast_get(uint64_t fh);
void fast_put(struct iofs_fast *fast);

/* The address space of an id, that of VFIO's container, or NULL. It is to be put. */
struct iofs_iopt *fast_get_iopt(struct iofs_fast *fast, uint32_t id);
struct iofs_iopt *fast_get_compat(struct iofs_fast *fast);

/* Whom a caller stands for: its address space, to be put, and whom to charge. NULL: ask Python. */
struct iofs_mm *fast_get_source(struct iofs_fast *fast, const struct iofs_ioctl *ioctl,
                                struct iofs_charge *charge);

/* Where the secret of a thread's address space lies that such a call will have to look at, to be
 * read with the payload, which costs less; 0: unknown. */
uint64_t fast_secret_at(uint64_t fh, int tid);

/* Carry out a call whose payload is read: 1, *result is its answer; 0: it is Python's. */
int fast_ioctl(const struct iofs_ioctl *ioctl, int32_t *result);
int fast_is_hot(uint32_t cmd);
int fast_maps(uint32_t cmd); /* it will ask for the source */

/* Carry out a read, as iofs_fast_read(). */
size_t fast_read(uint64_t fh, uint64_t position, size_t size, void *out);

#endif
