/*
 * Trees of closed intervals [start, last] over all of u64, ordered by start: intrusive AVL trees,
 * every operation O(log n). Two kinds:
 *
 * ITREE_GAPS     intervals never overlap. Each node knows the gap before it and the largest gap of
 *                its subtree, so that the lowest gap of some length is found in O(log n).
 * ITREE_OVERLAP  intervals may overlap. Each node knows the largest `last` of its subtree.
 *
 * A node belongs to whoever contains it; nothing is allocated here. No locks.
 */
#ifndef IOFS_ITREE_H
#define IOFS_ITREE_H

#include <stddef.h>
#include <stdint.h>

struct itree_node {
  uintptr_t parent_balance; /* the parent; in the lowest two bits: height right - left, plus 1 */
  struct itree_node *child[2];
  uint64_t start, last;
  uint64_t gap; /* ITREE_GAPS: free numbers between the previous interval, or 0, and start */
  uint64_t aug; /* of the subtree: the largest gap, or the largest last */
};

enum itree_kind { ITREE_GAPS, ITREE_OVERLAP };

struct itree {
  struct itree_node *root;
  enum itree_kind kind;
};

#define ITREE_OF(pointer, type, member) ((type *)((char *)(pointer) - offsetof(type, member)))

void itree_insert(struct itree *tree, struct itree_node *node);
void itree_erase(struct itree *tree, struct itree_node *node);

/* In order of start; NULL at the end. Intervals of one start come in no particular order. */
struct itree_node *itree_first(const struct itree *tree);
struct itree_node *itree_last(const struct itree *tree);
struct itree_node *itree_next(const struct itree_node *node);
struct itree_node *itree_prev(const struct itree_node *node);

/* The first node that meets [start, last], and the next one after `node` that does; NULL: none. */
struct itree_node *itree_find(const struct itree *tree, uint64_t start, uint64_t last);
struct itree_node *itree_find_next(const struct itree_node *node, uint64_t start, uint64_t last);

/* ITREE_GAPS: let the interval end at another place, short of the next one. */
void itree_set_last(struct itree_node *node, uint64_t last);

/*
 * ITREE_GAPS: walk the gaps inside the window [start, last], lowest first, leaving out what is
 * shorter than `length`: O(log n) each. 1: a gap, clipped to the window, is in *gap_start and
 * *gap_last (a clipped one may be shorter than length); 0: no more.
 */
struct itree_gaps {
  const struct itree *tree;
  uint64_t start, last, length;
  uint64_t from; /* gaps before nodes that start at or below are done */
  int done;
};

void itree_gaps_begin(struct itree_gaps *gaps, const struct itree *tree, uint64_t start,
                      uint64_t last, uint64_t length);
int itree_gaps_next(struct itree_gaps *gaps, uint64_t *gap_start, uint64_t *gap_last);

#endif
