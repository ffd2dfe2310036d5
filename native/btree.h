/*
 * B+ trees of closed intervals [start, last] over all of u64 that never overlap: for sets of a
 * million, where each step down a binary tree is a miss of the caches. Every operation O(log n), the
 * lowest gap of some length among them.
 *
 * The tree keeps a copy of start and last beside each other's and only points at the interval,
 * which belongs to whoever contains it. Nodes are the tree's: an insertion can fail. No locks.
 */
#ifndef IOFS_BTREE_H
#define IOFS_BTREE_H

#include <stddef.h>
#include <stdint.h>

struct interval {
  uint64_t start, last;
};

struct btree_node;

#define BTREE_MAX_HEIGHT 12 /* two neighbours together have more than eight entries */

/* The way down to an entry: at each height the node, and which of its entries. */
struct btree_path {
  struct btree_node *node[BTREE_MAX_HEIGHT];
  unsigned slot[BTREE_MAX_HEIGHT];
};

struct btree {
  struct btree_node *root; /* NULL: empty */
  unsigned height;         /* of the root; leaves have 0 */
  int has_sought;          /* btree_seek() was for an interval at sought_at, and nothing came after */
  uint64_t sought_at;
  struct btree_path sought;
};

/* Insert what overlaps nothing in the tree: ENOMEM. */
int btree_insert(struct btree *tree, struct interval *interval);
void btree_erase(struct btree *tree, const struct interval *interval);

/* Erase everything, lowest first; `forget` may free the interval, which nobody looks at again, and
 * leaves the tree alone. */
void btree_clear(struct btree *tree, void (*forget)(struct interval *interval, void *arg),
                 void *arg);

/* Let an interval of the tree end at another place, short of the next one. */
void btree_set_last(struct btree *tree, struct interval *interval, uint64_t last);

/* In order; NULL at the end. */
struct interval *btree_first(const struct btree *tree);
struct interval *btree_next(const struct btree *tree, const struct interval *interval);

/* The first one that meets [start, last]; NULL: none. */
struct interval *btree_find(const struct btree *tree, uint64_t start, uint64_t last);
/* The same, of which the tree remembers the way: if the next change is to insert an interval that
 * begins at `start`, or to erase the one that was found, it needs no search, and no look at what it
 * erases. */
struct interval *btree_seek(struct btree *tree, uint64_t start, uint64_t last);
/* The next one after `interval` that begins no later than `last`. */
struct interval *btree_find_next(const struct btree *tree, const struct interval *interval,
                                 uint64_t last);

/*
 * Walk the gaps inside the window [start, last], lowest first, leaving out what is shorter than
 * `length`: O(log n) each. 1: a gap, clipped to the window, is in *gap (a clipped one may be
 * shorter than length); 0: no more.
 */
struct btree_gaps {
  const struct btree *tree;
  uint64_t last, length;
  uint64_t from; /* what is below is done */
  int done;
};

void btree_gaps_begin(struct btree_gaps *gaps, const struct btree *tree, uint64_t start,
                      uint64_t last, uint64_t length);
int btree_gaps_next(struct btree_gaps *gaps, struct interval *gap);

#endif
