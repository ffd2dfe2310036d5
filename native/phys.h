/* The emulated physical address space: which numbers are given out, and to whom. Has its own lock,
 * the innermost one. */
#ifndef IOFS_PHYS_H
#define IOFS_PHYS_H

#include "itree.h"

/* Give `node` a range of `length` bytes, page aligned, whose start is congruent to `like` modulo
 * the largest leaf (1 GiB, 2 MiB, 4 KiB) that fits into the range. ENOMEM. */
int phys_reserve(struct itree_node *node, uint64_t length, uint64_t like);
void phys_release(struct itree_node *node);
struct itree_node *phys_find(uint64_t address); /* NULL: nobody's */

#endif
