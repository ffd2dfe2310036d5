/*
 * A list of runs of client memory, in the order of the bytes that they stand for, each held fast,
 * so that bytes can be moved after every lock of the maps is given back.
 */
#ifndef IOFS_COPY_H
#define IOFS_COPY_H

#include <stddef.h>
#include <stdint.h>

#include "mm.h"
#include "window.h"

struct copy_run {
  struct window *window; /* NULL: private memory, reached through mm */
  struct iofs_mm *mm;
  unsigned char *memory; /* in the window */
  uint64_t address;      /* in the client, without a window */
  uint64_t length;
};

struct copy_list {
  size_t n, capacity;
  int borrows; /* until copy_list_hold(): the caller knows that the memory stays */
  struct copy_run *runs;
  struct copy_run few[4];
};

void copy_list_init(struct copy_list *list);
/* For a caller under whose lock the memory stays: no references are taken before the hold. */
void copy_list_init_borrowing(struct copy_list *list);
void copy_list_hold(struct copy_list *list);
void copy_list_free(struct copy_list *list);

/* Append a run, with references of its own unless borrowing; one that continues the last is merged.
 * ENOMEM. */
int copy_list_add(struct copy_list *list, const struct copy_run *run);

/* Move the bytes of all runs into buf, or out of it (write: to the client). EFAULT at memory that
 * is gone; *done: bytes before the run, or the page, that failed. */
int copy_list_move(const struct copy_list *list, void *buf, int write, uint64_t *done);

#endif
