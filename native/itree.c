/* AVL trees of intervals with an augmentation (see itree.h). */
#include "itree.h"

#include <assert.h>

static struct itree_node *parent_of(const struct itree_node *node) {
  return (struct itree_node *)(node->parent_balance & ~(uintptr_t)3);
}

static int balance_of(const struct itree_node *node) { return (int)(node->parent_balance & 3) - 1; }

static void set_parent(struct itree_node *node, struct itree_node *parent) {
  node->parent_balance = (uintptr_t)parent | (node->parent_balance & 3);
}

static void set_balance(struct itree_node *node, int balance) {
  node->parent_balance = (node->parent_balance & ~(uintptr_t)3) | (uintptr_t)(balance + 1);
}

static void update(const struct itree *tree, struct itree_node *node) {
  uint64_t aug = tree->kind == ITREE_GAPS ? node->gap : node->last;
  for (int i = 0; i < 2; i++)
    if (node->child[i] && node->child[i]->aug > aug)
      aug = node->child[i]->aug;
  node->aug = aug;
}

static void update_up(const struct itree *tree, struct itree_node *node) {
  for (; node; node = parent_of(node))
    update(tree, node);
}

/* Let `parent`, or the root, point to `to` where it pointed to `from`. */
static void replace_child(struct itree *tree, struct itree_node *parent, struct itree_node *from,
                          struct itree_node *to) {
  if (!parent)
    tree->root = to;
  else
    parent->child[parent->child[1] == from] = to;
  if (to)
    set_parent(to, parent);
}

/* Lift the child of `node` on side `side` to its place; balances are the caller's business. */
static struct itree_node *rotate(struct itree *tree, struct itree_node *node, int side) {
  struct itree_node *up = node->child[side], *inner = up->child[!side];
  replace_child(tree, parent_of(node), node, up);
  node->child[side] = inner;
  if (inner)
    set_parent(inner, node);
  up->child[!side] = node;
  set_parent(node, up);
  update(tree, node);
  update(tree, up);
  return up;
}

/* `node` is two too high on side `side`: mend it. *shrunk: the subtree is lower than before the
 * rotation. Returns the new top of the subtree. */
static struct itree_node *rebalance(struct itree *tree, struct itree_node *node, int side,
                                    int *shrunk) {
  int sign = side ? 1 : -1;
  struct itree_node *child = node->child[side];
  int balance = balance_of(child);

  *shrunk = balance != 0;
  if (balance != -sign) {
    rotate(tree, node, side);
    set_balance(node, balance ? 0 : sign);
    set_balance(child, balance ? 0 : -sign);
    return child;
  }
  struct itree_node *top = child->child[!side];
  balance = balance_of(top);
  rotate(tree, child, !side);
  rotate(tree, node, side);
  set_balance(node, balance == sign ? -sign : 0);
  set_balance(child, balance == -sign ? sign : 0);
  set_balance(top, 0);
  return top;
}

static struct itree_node *outermost(struct itree_node *node, int side) {
  while (node && node->child[side])
    node = node->child[side];
  return node;
}

static struct itree_node *neighbour(const struct itree_node *node, int side) {
  if (node->child[side])
    return outermost(node->child[side], !side);
  struct itree_node *parent = parent_of(node);
  while (parent && parent->child[side] == node) {
    node = parent;
    parent = parent_of(node);
  }
  return parent;
}

struct itree_node *itree_first(const struct itree *tree) { return outermost(tree->root, 0); }
struct itree_node *itree_last(const struct itree *tree) { return outermost(tree->root, 1); }
struct itree_node *itree_next(const struct itree_node *node) { return neighbour(node, 1); }
struct itree_node *itree_prev(const struct itree_node *node) { return neighbour(node, 0); }

/* The side `side` of `node` has become higher by one. */
static void retrace_growth(struct itree *tree, struct itree_node *node) {
  struct itree_node *parent;
  for (; (parent = parent_of(node)); node = parent) {
    int side = parent->child[1] == node, balance = balance_of(parent) + (side ? 1 : -1), shrunk;
    if (balance == 2 || balance == -2) {
      rebalance(tree, parent, side, &shrunk);
      return;
    }
    set_balance(parent, balance);
    if (!balance)
      return;
  }
}

static void retrace_shrink(struct itree *tree, struct itree_node *node, int side) {
  while (node) {
    int balance = balance_of(node) - (side ? 1 : -1), shrunk = 1;
    struct itree_node *top = node;
    if (balance == 2 || balance == -2)
      top = rebalance(tree, node, !side, &shrunk);
    else {
      set_balance(node, balance);
      shrunk = !balance;
    }
    if (!shrunk)
      return;
    node = parent_of(top);
    side = node && node->child[1] == top;
  }
}

/* The gap between `node` and what comes before it. */
static uint64_t gap_before(const struct itree_node *node) {
  const struct itree_node *prev = itree_prev(node);
  return prev ? node->start - prev->last - 1 : node->start;
}

void itree_insert(struct itree *tree, struct itree_node *node) {
  struct itree_node *parent = NULL, **link = &tree->root, *next;
  assert(node->start <= node->last);
  while (*link) {
    parent = *link;
    link = &parent->child[node->start >= parent->start];
  }
  *link = node;
  node->parent_balance = (uintptr_t)parent;
  set_balance(node, 0);
  node->child[0] = node->child[1] = NULL;
  node->gap = 0;
  if (tree->kind == ITREE_GAPS) {
    node->gap = gap_before(node);
    /* The next node is above this leaf, so the walk up below passes it. */
    if ((next = itree_next(node)))
      next->gap = next->start - node->last - 1;
  }
  retrace_growth(tree, node);
  update_up(tree, node);
}

/* Put `heir`, the next node in order, which has no left child, in the place of `node`. Returns
 * the deepest node whose subtree changed; *side: the side of it that lost a level. */
static struct itree_node *take_place(struct itree *tree, struct itree_node *node,
                                     struct itree_node *heir, int *side) {
  struct itree_node *deepest = parent_of(heir);
  *side = 0;
  if (deepest == node) {
    deepest = heir;
    *side = 1;
  } else {
    replace_child(tree, deepest, heir, heir->child[1]);
    heir->child[1] = node->child[1];
    set_parent(heir->child[1], heir);
  }
  heir->child[0] = node->child[0];
  set_parent(heir->child[0], heir);
  set_balance(heir, balance_of(node));
  replace_child(tree, parent_of(node), node, heir);
  return deepest;
}

void itree_erase(struct itree *tree, struct itree_node *node) {
  struct itree_node *next = itree_next(node), *deepest;
  int side;

  if (next && tree->kind == ITREE_GAPS)
    next->gap += node->gap + (node->last - node->start) + 1;
  if (node->child[0] && node->child[1])
    deepest = take_place(tree, node, next, &side);
  else {
    deepest = parent_of(node);
    side = deepest && deepest->child[1] == node;
    replace_child(tree, deepest, node, node->child[!node->child[0]]);
  }
  retrace_shrink(tree, deepest, side);
  update_up(tree, deepest);
  if (next && tree->kind == ITREE_GAPS)
    update_up(tree, next);
}

void itree_set_last(struct itree_node *node, uint64_t last) {
  struct itree gaps = {NULL, ITREE_GAPS};
  struct itree_node *next = itree_next(node);
  assert(last >= node->start && (!next || last < next->start));
  node->last = last;
  if (next) {
    next->gap = next->start - last - 1;
    update_up(&gaps, next);
  }
}

/* Of an ITREE_OVERLAP subtree: the first node that meets [start, last]. */
static struct itree_node *find_overlap(struct itree_node *node, uint64_t start, uint64_t last) {
  while (node && node->aug >= start) {
    if (node->child[0] && node->child[0]->aug >= start) {
      /* What reaches start on the left side comes first, or else starts beyond last: then so
       * does everything to its right. */
      node = node->child[0];
      continue;
    }
    if (node->start > last)
      return NULL;
    if (node->last >= start)
      return node;
    node = node->child[1];
  }
  return NULL;
}

/* Of an ITREE_GAPS tree: the node with the lowest last that is not below start. */
static struct itree_node *find_disjoint(struct itree_node *node, uint64_t start, uint64_t last) {
  struct itree_node *best = NULL;
  while (node) {
    if (node->last >= start) {
      best = node;
      node = node->child[0];
    } else
      node = node->child[1];
  }
  return best && best->start <= last ? best : NULL;
}

struct itree_node *itree_find(const struct itree *tree, uint64_t start, uint64_t last) {
  return tree->kind == ITREE_GAPS ? find_disjoint(tree->root, start, last)
                                  : find_overlap(tree->root, start, last);
}

struct itree_node *itree_find_next(const struct itree_node *node, uint64_t start, uint64_t last) {
  struct itree_node *next = itree_next(node);
  while (next && next->start <= last && next->last < start)
    next = itree_next(next);
  return next && next->start <= last ? next : NULL;
}

/* The lowest node that starts above `from` behind a gap of at least `length`. Fails at most once
 * for each level: a subtree wholly above `from` has what its aug promises. */
static struct itree_node *find_gap(struct itree_node *node, uint64_t from, uint64_t length) {
  struct itree_node *found;
  while (node && node->aug >= length) {
    if (node->start > from) {
      if ((found = find_gap(node->child[0], from, length)))
        return found;
      if (node->gap >= length)
        return node;
    }
    node = node->child[1];
  }
  return NULL;
}

void itree_gaps_begin(struct itree_gaps *gaps, const struct itree *tree, uint64_t start,
                      uint64_t last, uint64_t length) {
  *gaps = (struct itree_gaps){tree, start, last, length ? length : 1, start, 0};
}

static int clip(const struct itree_gaps *gaps, uint64_t *gap_start, uint64_t *gap_last) {
  if (*gap_start < gaps->start)
    *gap_start = gaps->start;
  if (*gap_last > gaps->last)
    *gap_last = gaps->last;
  return *gap_start <= *gap_last;
}

int itree_gaps_next(struct itree_gaps *gaps, uint64_t *gap_start, uint64_t *gap_last) {
  struct itree_node *node;
  if (gaps->done)
    return 0;
  node = find_gap(gaps->tree->root, gaps->from, gaps->length);
  if (node) {
    *gap_start = node->start - node->gap;
    *gap_last = node->start - 1;
    gaps->from = node->start;
    if (clip(gaps, gap_start, gap_last))
      return 1;
    gaps->done = *gap_start > gaps->last;
    return gaps->done ? 0 : itree_gaps_next(gaps, gap_start, gap_last);
  }
  gaps->done = 1;
  node = itree_last(gaps->tree);
  if (node && node->last == UINT64_MAX)
    return 0;
  *gap_start = node ? node->last + 1 : 0;
  *gap_last = UINT64_MAX;
  return clip(gaps, gap_start, gap_last);
}
