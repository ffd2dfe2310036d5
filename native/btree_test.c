/* B+ trees against a naive map of every number, by random sequences. */
#include "btree.h"

#include <errno.h>
#include <string.h>

#include "iommufs.h"
#include "test.h"

enum { MAX = 6000, SPAN = 60000, LONGEST = 12 };

static uint64_t seed;
static struct interval pool[MAX];
static uint16_t owner[SPAN + LONGEST]; /* 1 + index of the interval that has the number; 0: none */
static int n_used;

static int is_free(uint64_t start, uint64_t last) {
  while (start <= last)
    if (owner[start++])
      return 0;
  return 1;
}

static void mark(const struct interval *interval, uint16_t who) {
  for (uint64_t at = interval->start; at <= interval->last; at++)
    owner[at] = who;
}

static const struct interval *naive_find(uint64_t start, uint64_t last) {
  for (; start <= last; start++)
    if (owner[start])
      return &pool[owner[start] - 1];
  return NULL;
}

static void check_find(const struct btree *tree) {
  uint64_t start = test_random(&seed) % SPAN, last = start + test_random(&seed) % 40;
  if (last >= SPAN)
    last = SPAN - 1;
  const struct interval *found = btree_find(tree, start, last);
  CHECK(found == naive_find(start, last));
  if (found && found->last < last)
    CHECK(btree_find_next(tree, found, last) == naive_find(found->last + 1, last));
}

static void check_order(const struct btree *tree) {
  const struct interval *at = btree_first(tree), *before = NULL;
  int n = 0;
  for (; at; before = at, at = btree_next(tree, at), n++)
    CHECK((!before || before->last < at->start) && owner[at->start] == at - pool + 1);
  CHECK_EQ(n, n_used);
}

/* The gaps of a window by walking every number, compared with the tree's walk. */
static void check_gaps(const struct btree *tree) {
  uint64_t at = test_random(&seed) % SPAN, last = at + test_random(&seed) % 600;
  uint64_t length = test_random(&seed) % 40 + 1;
  struct btree_gaps gaps;
  struct interval gap;
  if (last >= SPAN)
    last = SPAN - 1;
  btree_gaps_begin(&gaps, tree, at, last, length);
  int more = btree_gaps_next(&gaps, &gap);
  for (uint64_t end; at <= last; at = end + 1) {
    end = at;
    if (owner[at])
      continue;
    while (end < last && !owner[end + 1])
      end++;
    if (more && gap.start == at) {
      CHECK_EQ(gap.last, end);
      more = btree_gaps_next(&gaps, &gap);
    } else
      CHECK(end - at + 1 < length);
  }
  CHECK(!more);
  CHECK(!btree_gaps_next(&gaps, &gap));
}

static void add(struct btree *tree, unsigned i, uint64_t start, uint64_t last) {
  if (owner[start] || !is_free(start, last))
    return;
  pool[i] = (struct interval){start, last};
  iofs_fail_allocation(test_random(&seed) % 4 ? 0 : 1 + test_random(&seed) % 3);
  int err = btree_insert(tree, &pool[i]);
  iofs_fail_allocation(0);
  if (err) {
    CHECK_EQ(err, -ENOMEM);
    CHECK_EQ(btree_insert(tree, &pool[i]), 0);
  }
  mark(&pool[i], (uint16_t)(i + 1));
  n_used++;
}

static int is_used(unsigned i) { return owner[pool[i].start] == i + 1; }

static void take(struct btree *tree, unsigned i) {
  btree_erase(tree, &pool[i]);
  mark(&pool[i], 0);
  n_used--;
}

static void change_last(struct btree *tree, struct interval *interval) {
  uint16_t who = owner[interval->start];
  uint64_t last = interval->start + test_random(&seed) % LONGEST;
  if (last > interval->last && !is_free(interval->last + 1, last))
    return;
  mark(interval, 0);
  btree_set_last(tree, interval, last);
  mark(interval, who);
}

/* Grows and shrinks in turns, `limit` numbers being in use, so that trees of every height occur. */
static void random_sequence(unsigned limit) {
  struct btree tree = {0};
  memset(owner, 0, sizeof owner);
  memset(pool, 0, sizeof pool);
  n_used = 0;
  for (int step = 0; step < 60000; step++) {
    unsigned i = (unsigned)(test_random(&seed) % MAX), growing = step / 10000 % 2 == 0;
    uint64_t start = test_random(&seed) % limit;
    if (is_used(i) && (!growing || step % 8 == 0))
      take(&tree, i);
    else if (is_used(i))
      change_last(&tree, &pool[i]);
    else if (growing || step % 8 == 0)
      add(&tree, i, start, start + test_random(&seed) % LONGEST);
    check_find(&tree);
    if (step % 50 == 0)
      check_gaps(&tree);
    if (step % 3000 == 0)
      check_order(&tree);
  }
  for (unsigned i = 0; i < MAX; i++)
    if (is_used(i))
      take(&tree, i);
  CHECK(!tree.root && !tree.height && !n_used);
}

static void test_sparse(void) { random_sequence(SPAN); }
static void test_dense(void) { random_sequence(2000); }

/* Neighbours that come, and go, from either end. */
static void in_order(int from_above, int erase_from_above) {
  struct btree tree = {0};
  memset(owner, 0, sizeof owner);
  n_used = 0;
  for (unsigned k = 0; k < MAX; k++) {
    unsigned i = from_above ? MAX - 1 - k : k;
    pool[i] = (struct interval){i * 4 + 1, i * 4 + 2};
    CHECK_EQ(btree_insert(&tree, &pool[i]), 0);
    mark(&pool[i], (uint16_t)(i + 1));
    n_used++;
  }
  check_order(&tree);
  for (unsigned k = 0; k < MAX; k++) {
    take(&tree, erase_from_above ? MAX - 1 - k : k);
    check_find(&tree);
    if (k % 500 == 0) {
      check_order(&tree);
      check_gaps(&tree);
    }
  }
  CHECK(!tree.root);
}

static void test_in_order(void) {
  for (int i = 0; i < 4; i++)
    in_order(i & 1, i >> 1);
}

static void forget(struct interval *interval, void *arg) {
  int *n_forgotten = arg;
  CHECK_EQ(owner[interval->start], interval - pool + 1);
  mark(interval, 0);
  memset(interval, 0xff, sizeof *interval);
  ++*n_forgotten;
}

static void test_clear(void) {
  struct btree tree = {0};
  for (unsigned n = 0; n < MAX; n = n * 3 + 1) {
    memset(owner, 0, sizeof owner);
    n_used = 0;
    for (unsigned i = 0; i < n; i++)
      add(&tree, i, i * 7 % n * 4, i * 7 % n * 4 + 1);
    int n_forgotten = 0;
    btree_clear(&tree, forget, &n_forgotten);
    CHECK(!tree.root && n_forgotten == n_used);
  }
}

/* What was sought is no shortcut to anything else. */
static void test_changes_after_a_seek(void) {
  struct btree tree = {0};
  memset(owner, 0, sizeof owner);
  memset(pool, 0, sizeof pool);
  n_used = 0;
  for (int step = 0; step < 60000; step++) {
    unsigned i = (unsigned)(test_random(&seed) % MAX);
    uint64_t start = test_random(&seed) % SPAN, last = start + test_random(&seed) % LONGEST;
    uint64_t at = test_random(&seed) % 2 ? start : test_random(&seed) % SPAN;
    if (is_used(i))
      at = test_random(&seed) % 2 ? pool[i].start : at;
    CHECK(btree_seek(&tree, at, at) == naive_find(at, at));
    if (is_used(i))
      take(&tree, i);
    else
      add(&tree, i, start, last);
    if (step % 3000 == 0)
      check_order(&tree);
  }
  int n_forgotten = 0;
  btree_clear(&tree, forget, &n_forgotten);
  CHECK_EQ(n_forgotten, n_used);
}

static void test_the_whole_space(void) {
  struct btree tree = {0};
  struct interval low = {0, 0}, high = {UINT64_MAX, UINT64_MAX}, gap;
  struct btree_gaps gaps;
  btree_gaps_begin(&gaps, &tree, 0, UINT64_MAX, 1);
  CHECK(btree_gaps_next(&gaps, &gap) && gap.start == 0 && gap.last == UINT64_MAX);
  CHECK_EQ(btree_insert(&tree, &low), 0);
  CHECK_EQ(btree_insert(&tree, &high), 0);
  btree_gaps_begin(&gaps, &tree, 0, UINT64_MAX, 1);
  CHECK(btree_gaps_next(&gaps, &gap) && gap.start == 1 && gap.last == UINT64_MAX - 1);
  CHECK(!btree_gaps_next(&gaps, &gap));
  CHECK(btree_find(&tree, UINT64_MAX, UINT64_MAX) == &high);
  CHECK(btree_find(&tree, 0, 0) == &low);
  CHECK(!btree_find(&tree, 1, UINT64_MAX - 1));
  CHECK(!btree_next(&tree, &high));
  btree_erase(&tree, &low);
  btree_erase(&tree, &high);
  CHECK(!tree.root);
}

int main(int argc, char **argv) {
  seed = test_seed(argc, argv);
  RUN(test_sparse);
  RUN(test_dense);
  RUN(test_in_order);
  RUN(test_clear);
  RUN(test_changes_after_a_seek);
  RUN(test_the_whole_space);
  return 0;
}
