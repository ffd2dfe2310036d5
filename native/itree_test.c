/* Trees against naive lists, by random sequences. */
#include "itree.h"

#include <string.h>

#include "test.h"

enum { MAX = 400, SPAN = 2000 };

static uint64_t seed;
static struct itree_node pool[MAX];
static int used[MAX]; /* pool[i] is in the tree */

static uintptr_t parent_bits(const struct itree_node *node) {
  return node->parent_balance & ~(uintptr_t)3;
}

/* The height of the subtree, having checked its links, balances and augmentation. */
static int check_subtree(const struct itree *tree, const struct itree_node *node) {
  if (!node)
    return 0;
  int height[2];
  uint64_t aug = tree->kind == ITREE_GAPS ? node->gap : node->last;
  for (int i = 0; i < 2; i++) {
    const struct itree_node *child = node->child[i];
    height[i] = check_subtree(tree, child);
    if (!child)
      continue;
    CHECK(parent_bits(child) == (uintptr_t)node);
    CHECK(i ? child->start >= node->start : child->start <= node->start);
    if (child->aug > aug)
      aug = child->aug;
  }
  CHECK(node->aug == aug);
  CHECK_EQ((int)(node->parent_balance & 3) - 1, height[1] - height[0]);
  CHECK(abs(height[1] - height[0]) <= 1);
  return 1 + (height[0] > height[1] ? height[0] : height[1]);
}

static void check_tree(const struct itree *tree) {
  check_subtree(tree, tree->root);
  const struct itree_node *prev = NULL;
  size_t n = 0, expected = 0;
  for (struct itree_node *node = itree_first(tree); node; node = itree_next(node), n++) {
    CHECK(itree_prev(node) == prev);
    if (tree->kind == ITREE_GAPS) {
      CHECK(!prev || node->start > prev->last);
      CHECK(node->gap == (prev ? node->start - prev->last - 1 : node->start));
    }
    prev = node;
  }
  CHECK(itree_last(tree) == prev);
  for (int i = 0; i < MAX; i++)
    expected += (size_t)used[i];
  CHECK_EQ(n, expected);
}

static int meets(const struct itree_node *node, uint64_t start, uint64_t last) {
  return node->start <= last && node->last >= start;
}

/* How many intervals meet the range, by looking at each. */
static int naive_count(uint64_t start, uint64_t last) {
  int n = 0;
  for (int i = 0; i < MAX; i++)
    n += used[i] && meets(&pool[i], start, last);
  return n;
}

static void check_find(const struct itree *tree, uint64_t start, uint64_t last) {
  struct itree_node *node = itree_find(tree, start, last), *prev = NULL;
  int n = 0;
  for (; node; prev = node, node = itree_find_next(node, start, last), n++) {
    CHECK(meets(node, start, last));
    CHECK(!prev || prev->start <= node->start);
  }
  CHECK_EQ(n, naive_count(start, last));
}

/* Gaps in the window by walking every number, compared with the tree's walk. */
static void check_gaps(const struct itree *tree, uint64_t start, uint64_t last, uint64_t length) {
  struct itree_gaps gaps;
  uint64_t gap_start, gap_last, at = start;
  itree_gaps_begin(&gaps, tree, start, last, length);
  int more = itree_gaps_next(&gaps, &gap_start, &gap_last);
  while (at <= last) {
    if (naive_count(at, at)) {
      at++;
      continue;
    }
    uint64_t end = at;
    while (end < last && !naive_count(end + 1, end + 1))
      end++;
    if (more && gap_start == at) {
      CHECK_EQ(gap_last, end);
      more = itree_gaps_next(&gaps, &gap_start, &gap_last);
    } else
      CHECK(end - at + 1 < length);
    at = end + 1;
  }
  CHECK(!more);
  CHECK(!itree_gaps_next(&gaps, &gap_start, &gap_last));
}

static void random_sequence(enum itree_kind kind) {
  struct itree tree = {NULL, kind};
  memset(used, 0, sizeof used);
  for (int step = 0; step < 6000; step++) {
    int i = (int)(test_random(&seed) % MAX);
    uint64_t start = test_random(&seed) % SPAN, last = start + test_random(&seed) % 12;
    if (used[i]) {
      itree_erase(&tree, &pool[i]);
      used[i] = 0;
    } else if (kind == ITREE_OVERLAP || !naive_count(start, last)) {
      pool[i].start = start;
      pool[i].last = last;
      itree_insert(&tree, &pool[i]);
      used[i] = 1;
    }
    if (step % 16 == 0)
      check_tree(&tree);
    check_find(&tree, start, start + test_random(&seed) % 64);
    if (kind == ITREE_GAPS && step % 64 == 0)
      check_gaps(&tree, start, start + test_random(&seed) % 300, test_random(&seed) % 20 + 1);
  }
  for (int i = 0; i < MAX; i++)
    if (used[i])
      itree_erase(&tree, &pool[i]);
  CHECK(!tree.root);
}

static void test_overlapping_intervals(void) { random_sequence(ITREE_OVERLAP); }
static void test_disjoint_intervals_and_gaps(void) { random_sequence(ITREE_GAPS); }

static void test_the_whole_space(void) {
  struct itree tree = {NULL, ITREE_GAPS};
  struct itree_node low = {.start = 0, .last = 0}, high = {.start = UINT64_MAX, .last = UINT64_MAX};
  struct itree_gaps gaps;
  uint64_t start, last;
  itree_gaps_begin(&gaps, &tree, 0, UINT64_MAX, 1);
  CHECK(itree_gaps_next(&gaps, &start, &last) && start == 0 && last == UINT64_MAX);
  itree_insert(&tree, &low);
  itree_insert(&tree, &high);
  itree_gaps_begin(&gaps, &tree, 0, UINT64_MAX, 1);
  CHECK(itree_gaps_next(&gaps, &start, &last) && start == 1 && last == UINT64_MAX - 1);
  CHECK(!itree_gaps_next(&gaps, &start, &last));
  CHECK(itree_find(&tree, UINT64_MAX, UINT64_MAX) == &high);
  itree_erase(&tree, &low);
  CHECK_EQ(high.gap, UINT64_MAX);
  itree_erase(&tree, &high);
}

static void test_set_last_moves_the_next_gap(void) {
  struct itree tree = {NULL, ITREE_GAPS};
  struct itree_node a = {.start = 10, .last = 19}, b = {.start = 40, .last = 49};
  itree_insert(&tree, &a);
  itree_insert(&tree, &b);
  itree_set_last(&a, 14);
  CHECK_EQ(b.gap, 25);
  CHECK_EQ(tree.root->aug, 25);
  itree_set_last(&b, 41);
  CHECK(!itree_find(&tree, 42, 100));
}

int main(int argc, char **argv) {
  seed = test_seed(argc, argv);
  RUN(test_overlapping_intervals);
  RUN(test_disjoint_intervals_and_gaps);
  RUN(test_the_whole_space);
  RUN(test_set_last_moves_the_next_gap);
  return 0;
}
