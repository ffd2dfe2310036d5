/* Segments: where a run of pages has its memory. Shared by pages.c and source.c only. */
#ifndef IOFS_SEGMENT_H
#define IOFS_SEGMENT_H

#include "itree.h"
#include "pages.h"

struct segment {
  struct itree_node node; /* page indexes */
  struct segment *next;   /* in a list that is not in a tree yet */
  uint32_t users;         /* pinned intervals that cover it */
  struct window *window;  /* NULL: private memory of pages->mm */
  unsigned char *memory;  /* of the first page, in the window */
};

struct segment_list {
  struct segment *first, *last;
  uint64_t n_pages;
};

/* Find the memory of the pages [first, last] and append it: EFAULT, EINVAL (file), ENOMEM. On
 * failure the list may have grown. */
int source_find(const struct pages *pages, uint64_t first, uint64_t last,
                struct segment_list *list);

void segment_free(struct segment *segment);

#endif
