/*
 * B+ trees of disjoint intervals (see btree.h).
 *
 * Entry i of a leaf is an interval, entry i of an inner node a subtree: from the start of its first
 * interval to the last of its last one, and a length that no gap between two intervals inside it
 * exceeds. The gaps between entries are not kept: they are what lies between last[i] and
 * start[i + 1].
 *
 * An insertion makes gaps shorter and leaves the bounds above it alone; who looks for a gap in vain
 * puts them right. So each is looked at once for what has changed, and no insertion writes to nodes
 * above the leaf as a rule.
 */
#include "btree.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "alloc.h"

#define FANOUT 31 /* seven groups of four and one of three, see search() */
#define SPARSE 8  /* a node with fewer entries is merged with a neighbour, if they fit into one */
#define CACHE_LINE 64
#define AHEAD 4

struct btree_node {
  uint64_t last[FANOUT]; /* UINT64_MAX from n on */
  uint32_t n;
  void *entry[FANOUT];
  uint64_t start[FANOUT];
  uint64_t gap[]; /* inner nodes: FANOUT */
};

#define LINES(bytes) (((bytes) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE)

static struct slab_pool leaves = SLAB_POOL(LINES(sizeof(struct btree_node)));
static struct slab_pool inner_nodes =
    SLAB_POOL(LINES(sizeof(struct btree_node) + FANOUT * sizeof(uint64_t)));

static struct slab_pool *pool_of(unsigned height) { return height ? &inner_nodes : &leaves; }

static struct btree_node *new_node(unsigned height) {
  struct btree_node *node = alloc_object(pool_of(height));
  if (!node)
    return NULL;
  memset(node->last, 0xff, sizeof node->last);
  node->n = 0;
  return node;
}

static void free_node(struct btree_node *node, unsigned height) {
  alloc_free_object(pool_of(height), node);
}

/* Let all that a search needs come at once: it would wait for one piece of last[] after the other,
 * and then for what it has found. */
static inline void fetch(const struct btree_node *node, unsigned height) {
  size_t bytes = height ? offsetof(struct btree_node, start) : sizeof *node;
  for (size_t byte = 0; byte < bytes; byte += CACHE_LINE)
    __builtin_prefetch((const char *)node + byte);
}

/* Who goes from one interval to the next is given those that he will come to, and what is around
 * them. */
static inline void fetch_ahead(const struct btree_node *leaf, unsigned slot, uint64_t last) {
  if (slot + AHEAD >= leaf->n || leaf->start[slot + AHEAD] > last)
    return;
  __builtin_prefetch(leaf->entry[slot + AHEAD]);
  __builtin_prefetch((const char *)leaf->entry[slot + AHEAD] + CACHE_LINE);
}

/* The first entry that ends at `at` or later; n: none. Two rounds of comparisons that need not wait for
 * each other, instead of five that do. */
static inline unsigned search(const struct btree_node *node, uint64_t at) {
  unsigned i = 0, more = 0;
#pragma GCC unroll 8
  for (unsigned last_of_four = 3; last_of_four < FANOUT; last_of_four += 4)
    i += node->last[last_of_four] < at;
  i *= 4;
#pragma GCC unroll 4
  for (unsigned k = 0; k < 3; k++)
    more += node->last[i + k] < at;
  i += more;
  return i < node->n ? i : node->n;
}

static uint64_t gap_between(const struct btree_node *node, unsigned i) {
  return node->start[i + 1] - node->last[i] - 1;
}

static uint64_t longest_gap(const struct btree_node *node, unsigned height) {
  uint64_t longest = 0;
  for (unsigned i = 0; i + 1 < node->n; i++)
    if (gap_between(node, i) > longest)
      longest = gap_between(node, i);
  for (unsigned i = 0; height && i < node->n; i++)
    if (node->gap[i] > longest)
      longest = node->gap[i];
  return longest;
}

/* ---- entries of one node --------------------------------------------------------------------- */

/* Move entries [from, n) of one node to place `to` of another one, or of the same. */
static void move(struct btree_node *dst, unsigned to, struct btree_node *src, unsigned from,
                 unsigned n, unsigned height) {
  size_t bytes = (n - from) * sizeof(uint64_t);
  memmove(dst->last + to, src->last + from, bytes);
  memmove(dst->start + to, src->start + from, bytes);
  memmove(dst->entry + to, src->entry + from, bytes);
  if (height)
    memmove(dst->gap + to, src->gap + from, bytes);
}

static void set_n(struct btree_node *node, unsigned n) {
  for (unsigned i = n; i < node->n; i++)
    node->last[i] = UINT64_MAX;
  node->n = n;
}

static void open_slot(struct btree_node *node, unsigned slot, unsigned height) {
  move(node, slot + 1, node, slot, node->n, height);
  node->n++;
}

static void close_slot(struct btree_node *node, unsigned slot, unsigned height) {
  move(node, slot, node, slot + 1, node->n, height);
  set_n(node, node->n - 1);
}

/* Let entry `slot` of a node of this height say what its subtree is now; 0: it did already. */
static int summarise(struct btree_node *node, unsigned slot, unsigned height) {
  const struct btree_node *child = node->entry[slot];
  uint64_t start = child->start[0], last = child->last[child->n - 1];
  uint64_t gap = longest_gap(child, height - 1);
  if (node->start[slot] == start && node->last[slot] == last && node->gap[slot] == gap)
    return 0;
  node->start[slot] = start;
  node->last[slot] = last;
  node->gap[slot] = gap;
  return 1;
}

static void summarise_up(const struct btree *tree, const struct btree_path *path, unsigned height) {
  while (++height <= tree->height && summarise(path->node[height], path->slot[height], height))
    ;
}

/* The longest gap beside or inside an entry; `slot` may be n. */
static uint64_t gap_around(const struct btree_node *node, unsigned height, unsigned slot) {
  uint64_t longest = 0;
  if (slot >= node->n)
    return 0;
  if (slot)
    longest = gap_between(node, slot - 1);
  if (slot + 1 < node->n && gap_between(node, slot) > longest)
    longest = gap_between(node, slot);
  return height && node->gap[slot] > longest ? node->gap[slot] : longest;
}

/* After entry path->slot[0] of a leaf has come, gone or changed: let the nodes above tell where things
 * begin and end now, and of gaps that have become longer. */
static void refresh(const struct btree *tree, const struct btree_path *path) {
  for (unsigned height = 1; height <= tree->height; height++) {
    struct btree_node *node = path->node[height], *child = path->node[height - 1];
    unsigned slot = path->slot[height];
    uint64_t gap = gap_around(child, height - 1, path->slot[height - 1]);
    uint64_t start = child->start[0], last = child->last[child->n - 1];
    if (gap < node->gap[slot])
      gap = node->gap[slot];
    if (node->start[slot] == start && node->last[slot] == last && node->gap[slot] == gap)
      return;
    node->start[slot] = start;
    node->last[slot] = last;
    node->gap[slot] = gap;
  }
}

/* ---- the way down ---------------------------------------------------------------------------- */

/* To where an interval that begins at `at` is, or belongs; what is behind everything belongs into
 * the last leaf. */
static void descend(const struct btree *tree, uint64_t at, struct btree_path *path) {
  struct btree_node *node = tree->root;
  for (unsigned height = tree->height; height; height--) {
    fetch(node, height);
    unsigned slot = search(node, at);
    if (slot == node->n)
      slot--;
    path->node[height] = node;
    path->slot[height] = slot;
    node = node->entry[slot];
  }
  fetch(node, 0);
  path->node[0] = node;
  path->slot[0] = search(node, at);
}

struct interval *btree_seek(struct btree *tree, uint64_t start, uint64_t last) {
  if (!tree->root)
    return NULL;
  descend(tree, start, &tree->sought);
  tree->sought_at = start;
  tree->has_sought = 1;
  const struct btree_node *leaf = tree->sought.node[0];
  unsigned slot = tree->sought.slot[0];
  fetch_ahead(leaf, slot, last);
  return slot < leaf->n && leaf->start[slot] <= last ? leaf->entry[slot] : NULL;
}

/* Where a new interval belongs; the tree is about to change. */
static struct btree_path *path_for(struct btree *tree, uint64_t at) {
  if (!tree->has_sought || tree->sought_at != at)
    descend(tree, at, &tree->sought);
  tree->has_sought = 0;
  return &tree->sought;
}

/* Where an interval of the tree is; the tree is about to change. */
static struct btree_path *path_to(struct btree *tree, const struct interval *interval) {
  struct btree_path *path = &tree->sought;
  if (!tree->has_sought || path->slot[0] == path->node[0]->n ||
      path->node[0]->entry[path->slot[0]] != interval)
    descend(tree, interval->start, path);
  tree->has_sought = 0;
  assert(path->node[0]->entry[path->slot[0]] == interval);
  return path;
}

/* ---- insertion ------------------------------------------------------------------------------- */

/* Make the nodes that an insertion along the path will need: fresh[height], and a new root at
 * the height above. */
static int prepare(const struct btree *tree, const struct btree_path *path, struct btree_node **fresh,
                   unsigned *n_fresh) {
  unsigned height = 0;
  for (; height <= tree->height && path->node[height]->n == FANOUT; height++)
    if (!(fresh[height] = new_node(height)))
      goto no_memory;
  *n_fresh = height;
  if (height <= tree->height)
    return 0;
  assert(height < BTREE_MAX_HEIGHT);
  if ((fresh[height] = new_node(height)))
    return 0;
no_memory:
  while (height--)
    free_node(fresh[height], height);
  return -ENOMEM;
}

/* Divide a full node, of which `slot` is to be opened, and open it in the right one. What grows at
 * its end stays full, as more will come there. */
static struct btree_node *split(struct btree_node *node, struct btree_node *right, unsigned height,
                                unsigned *slot) {
  unsigned half = *slot == FANOUT ? FANOUT : FANOUT / 2 + 1;
  move(right, 0, node, half, FANOUT, height);
  right->n = FANOUT - half;
  set_n(node, half);
  if (*slot < half) {
    open_slot(node, *slot, height);
    return node;
  }
  *slot -= half;
  open_slot(right, *slot, height);
  return right;
}

static void put_subtree(struct btree_node *node, unsigned slot, struct btree_node *child,
                        unsigned height) {
  node->entry[slot] = child;
  node->start[slot] = node->last[slot] = 0;
  summarise(node, slot, height);
}

static void grow_root(struct btree *tree, struct btree_node *root, struct btree_node *right) {
  struct btree_node *left = tree->root;
  unsigned height = ++tree->height;
  root->n = 2;
  put_subtree(root, 0, left, height);
  put_subtree(root, 1, right, height);
  tree->root = root;
}

/* `fresh` is to stand right of entry path->slot[height] of that height. */
static void insert_subtree(struct btree *tree, struct btree_path *path, unsigned height,
                           struct btree_node **fresh, unsigned n_fresh) {
  for (;; height++) {
    struct btree_node *child = fresh[height - 1], *node, *into;
    if (height > tree->height) {
      grow_root(tree, fresh[height], child);
      return;
    }
    node = into = path->node[height];
    summarise(node, path->slot[height], height);
    unsigned slot = path->slot[height] + 1;
    if (height >= n_fresh) {
      open_slot(node, slot, height);
      put_subtree(node, slot, child, height);
      summarise_up(tree, path, height);
      return;
    }
    into = split(node, fresh[height], height, &slot);
    put_subtree(into, slot, child, height);
  }
}

static void put_interval(struct btree_node *leaf, unsigned slot, struct interval *interval) {
  leaf->last[slot] = interval->last;
  leaf->start[slot] = interval->start;
  leaf->entry[slot] = interval;
}

int btree_insert(struct btree *tree, struct interval *interval) {
  struct btree_node *fresh[BTREE_MAX_HEIGHT];
  unsigned n_fresh;
  assert(interval->start <= interval->last);
  if (!tree->root && !(tree->root = new_node(0)))
    return -ENOMEM;
  struct btree_path *path = path_for(tree, interval->start);
  int err = prepare(tree, path, fresh, &n_fresh);
  if (err)
    return err;
  struct btree_node *leaf = path->node[0];
  unsigned slot = path->slot[0];
  if (n_fresh) {
    leaf = split(leaf, fresh[0], 0, &slot);
    put_interval(leaf, slot, interval);
    insert_subtree(tree, path, 1, fresh, n_fresh);
    return 0;
  }
  open_slot(leaf, slot, 0);
  put_interval(leaf, slot, interval);
  refresh(tree, path);
  return 0;
}

/* ---- removal --------------------------------------------------------------------------------- */

/* Let entries `at` and `at` + 1 be one, if they fit. */
static int merge_two(struct btree_node *parent, unsigned at, unsigned height) {
  struct btree_node *left = parent->entry[at], *right = parent->entry[at + 1];
  if (left->n + right->n > FANOUT)
    return 0;
  move(left, left->n, right, 0, right->n, height - 1);
  left->n += right->n;
  free_node(right, height - 1);
  close_slot(parent, at + 1, height);
  summarise(parent, at, height);
  return 1;
}

/* Entry `slot` has become sparse: 1 if it is gone, which an empty one always is. */
static int merge(struct btree_node *parent, unsigned slot, unsigned height) {
  struct btree_node *child = parent->entry[slot];
  if (slot + 1 < parent->n && merge_two(parent, slot, height))
    return 1;
  if (slot && merge_two(parent, slot - 1, height))
    return 1;
  if (child->n)
    return 0;
  free_node(child, height - 1); /* an only child */
  close_slot(parent, slot, height);
  return 1;
}

static void shrink_root(struct btree *tree) {
  struct btree_node *root;
  while ((root = tree->root) && (tree->height ? root->n == 1 : !root->n)) {
    tree->root = tree->height ? root->entry[0] : NULL;
    free_node(root, tree->height);
    tree->height -= !!tree->height;
  }
}

void btree_erase(struct btree *tree, const struct interval *interval) {
  struct btree_path *path = path_to(tree, interval);
  unsigned height = 0;
  close_slot(path->node[0], path->slot[0], 0);
  while (height < tree->height && path->node[height]->n < SPARSE &&
         merge(path->node[height + 1], path->slot[height + 1], height + 1))
    height++;
  if (height)
    summarise_up(tree, path, height);
  else if (path->node[0]->n) /* else it is the root */
    refresh(tree, path);
  shrink_root(tree);
}

static void clear(struct btree_node *node, unsigned height,
                  void (*forget)(struct interval *interval, void *arg), void *arg) {
  fetch(node, height);
  for (unsigned i = 0; i < node->n; i++) {
    if (height) {
      clear(node->entry[i], height - 1, forget, arg);
      continue;
    }
    fetch_ahead(node, i, UINT64_MAX);
    forget(node->entry[i], arg);
  }
  free_node(node, height);
}

void btree_clear(struct btree *tree, void (*forget)(struct interval *interval, void *arg),
                 void *arg) {
  if (tree->root)
    clear(tree->root, tree->height, forget, arg);
  *tree = (struct btree){0};
}

void btree_set_last(struct btree *tree, struct interval *interval, uint64_t last) {
  struct btree_path *path = path_to(tree, interval);
  assert(last >= interval->start);
  interval->last = path->node[0]->last[path->slot[0]] = last;
  refresh(tree, path);
}

/* ---- looking --------------------------------------------------------------------------------- */

struct interval *btree_find(const struct btree *tree, uint64_t start, uint64_t last) {
  const struct btree_node *node = tree->root;
  if (!node)
    return NULL;
  for (unsigned height = tree->height; height; height--) {
    fetch(node, height);
    unsigned slot = search(node, start);
    if (slot == node->n)
      return NULL;
    node = node->entry[slot];
  }
  fetch(node, 0);
  unsigned slot = search(node, start);
  return slot < node->n && node->start[slot] <= last ? node->entry[slot] : NULL;
}

struct interval *btree_first(const struct btree *tree) { return btree_find(tree, 0, UINT64_MAX); }

struct interval *btree_find_next(const struct btree *tree, const struct interval *interval,
                                 uint64_t last) {
  return interval->last < last ? btree_find(tree, interval->last + 1, last) : NULL;
}

struct interval *btree_next(const struct btree *tree, const struct interval *interval) {
  return btree_find_next(tree, interval, UINT64_MAX);
}

/* ---- gaps ------------------------------------------------------------------------------------ */

/* The lowest gap between two intervals of the subtree that ends at `from` or later and has at
 * least `length`. Below an entry that promises too much it is looked for in vain, once. */
static int find_gap(struct btree_node *node, unsigned height, uint64_t from, uint64_t length,
                    struct interval *gap) {
  for (unsigned i = search(node, from); i < node->n; i++) {
    if (i && node->start[i] > from && gap_between(node, i - 1) >= length) {
      *gap = (struct interval){node->last[i - 1] + 1, node->start[i] - 1};
      return 1;
    }
    if (!height || node->gap[i] < length)
      continue;
    if (find_gap(node->entry[i], height - 1, from, length, gap))
      return 1;
    if (node->start[i] >= from) /* all of it was looked at */
      node->gap[i] = longest_gap(node->entry[i], height - 1);
  }
  return 0;
}

void btree_gaps_begin(struct btree_gaps *gaps, const struct btree *tree, uint64_t start,
                      uint64_t last, uint64_t length) {
  *gaps = (struct btree_gaps){tree, last, length ? length : 1, start, start > last};
}

/* The lowest gap that ends at gaps->from or later; 0: there is none. */
static int next_gap(const struct btree_gaps *gaps, struct interval *gap) {
  struct btree_node *root = gaps->tree->root;
  *gap = (struct interval){0, UINT64_MAX};
  if (!root)
    return 1;
  if (root->start[0] > gaps->from && root->start[0] >= gaps->length) {
    gap->last = root->start[0] - 1;
    return 1;
  }
  if (find_gap(root, gaps->tree->height, gaps->from, gaps->length, gap))
    return 1;
  gap->start = root->last[root->n - 1] + 1;
  return gap->start && -gap->start >= gaps->length; /* 0: the last one ends where everything ends */
}

int btree_gaps_next(struct btree_gaps *gaps, struct interval *gap) {
  if (gaps->done)
    return 0;
  if (!next_gap(gaps, gap) || gap->start > gaps->last) {
    gaps->done = 1;
    return 0;
  }
  if (gap->start < gaps->from)
    gap->start = gaps->from;
  gaps->done = gap->last >= gaps->last;
  if (gaps->done)
    gap->last = gaps->last;
  else
    gaps->from = gap->last + 1;
  return 1;
}
