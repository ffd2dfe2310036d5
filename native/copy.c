/* Runs of client memory to be copied (see copy.h). */
#include "copy.h"

#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "guard.h"

void copy_list_init(struct copy_list *list) {
  list->n = 0;
  list->borrows = 0;
  list->capacity = sizeof list->few / sizeof *list->few;
  list->runs = list->few;
}

void copy_list_init_borrowing(struct copy_list *list) {
  copy_list_init(list);
  list->borrows = 1;
}

static void hold(const struct copy_run *run) {
  if (run->window)
    window_get(run->window);
  else
    iofs_mm_get(run->mm);
}

void copy_list_hold(struct copy_list *list) {
  for (size_t i = 0; i < list->n; i++)
    hold(&list->runs[i]);
  list->borrows = 0;
}

void copy_list_free(struct copy_list *list) {
  for (size_t i = 0; i < list->n && !list->borrows; i++)
    if (list->runs[i].window)
      window_put(list->runs[i].window);
    else
      iofs_mm_put(list->runs[i].mm);
  if (list->runs != list->few)
    alloc_free(list->runs);
}

static int grow(struct copy_list *list) {
  struct copy_run *more = alloc_array(list->capacity * 2, sizeof *more);
  if (!more)
    return -ENOMEM;
  memcpy(more, list->runs, list->n * sizeof *more);
  if (list->runs != list->few)
    alloc_free(list->runs);
  list->runs = more;
  list->capacity *= 2;
  return 0;
}

static int continues(const struct copy_run *last, const struct copy_run *run) {
  if (last->window != run->window)
    return 0;
  return run->window ? last->memory + last->length == run->memory
                     : last->mm == run->mm && last->address + last->length == run->address;
}

int copy_list_add(struct copy_list *list, const struct copy_run *run) {
  if (list->n && continues(&list->runs[list->n - 1], run)) {
    list->runs[list->n - 1].length += run->length;
    return 0;
  }
  if (list->n == list->capacity && grow(list))
    return -ENOMEM;
  if (!list->borrows)
    hold(run);
  list->runs[list->n++] = *run;
  return 0;
}

static int move_window(const struct copy_run *run, unsigned char *buf, int write) {
  if (!write)
    return guard_copy(buf, run->memory, run->length);
  return run->window->writable ? guard_copy(run->memory, buf, run->length) : -EFAULT;
}

/* Runs of one client's private memory, side by side, as many as go into one call. */
static int move_private(const struct copy_run *run, size_t *n, unsigned char *buf, int write,
                        uint64_t *done) {
  struct mm_span spans[16];
  size_t limit = *n < sizeof spans / sizeof *spans ? *n : sizeof spans / sizeof *spans;
  for (*n = 0; *n < limit && !run[*n].window && run[*n].mm == run->mm; ++*n)
    spans[*n] = (struct mm_span){run[*n].address, run[*n].length};
  return mm_move(run->mm, spans, *n, buf, write, done);
}

int copy_list_move(const struct copy_list *list, void *buf, int write, uint64_t *done) {
  unsigned char *at = buf;
  size_t n;
  *done = 0;
  for (size_t i = 0; i < list->n; i += n) {
    const struct copy_run *run = &list->runs[i];
    uint64_t moved = 0;
    int err;
    n = list->n - i;
    if (run->window) {
      n = 1;
      if (!(err = move_window(run, at, write)))
        moved = run->length;
    } else
      err = move_private(run, &n, at, write, &moved);
    *done += moved;
    at += moved;
    if (err)
      return err;
  }
  return 0;
}
