/*
 * Many areas, in random order and in the order of their addresses: the tree alone against the C
 * library's (tsearch, a red-black tree), and an address space with all that an area needs. 1,000,000
 * against 1,000 shows what the size costs; in random order most of that are misses of the caches.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <search.h>
#include <unistd.h>

#include "bench.h"
#include "iommufs.h"
#include "btree.h"

#define ROUNDS 3
#define SMALL 1000
#define LARGE 1000000
#define REPEAT (LARGE / SMALL) /* of the small one, so that both do as many operations */
#define PAGE 4096ull
#define FIRST (1ull << 32)

static struct interval *nodes;
static uint32_t *order, *lookup_order;
static const struct iofs_charge no_charge = {IOFS_CHARGE_NONE, 0, 0};

/* Neighbours with a hole of one page between them, 1 << 12 bytes each. */
static uint64_t start_of(uint32_t i) { return FIRST + i * 2 * PAGE; }

/* 0 … n - 1; seed 0: in order. */
static void fill(uint32_t *array, uint32_t n, uint64_t seed) {
  for (uint32_t i = 0; i < n; i++)
    array[i] = i;
  for (uint32_t i = seed ? n : 0; i > 1; i--) {
    uint32_t other = (uint32_t)(random_u64(&seed) % i), held = array[i - 1];
    array[i - 1] = array[other];
    array[other] = held;
  }
}

enum { INSERT, LOOKUP, ERASE, N_OPERATIONS };
static const char *const operation_names[] = {"insert", "lookup", "erase"};

struct subject {
  const char *name;
  void (*prepare)(uint32_t n);
  void (*operations[N_OPERATIONS])(uint32_t i); /* on area i */
  void (*finish)(void);
};

/* Nanoseconds of one operation; one entry for each of them and each round. */
static void run_round(const struct subject *subject, uint32_t n, int in_order,
                      struct series *series) {
  uint64_t ns[N_OPERATIONS] = {0}, repeat = n == SMALL ? REPEAT : 1;
  fill(order, n, in_order ? 0 : 1);
  fill(lookup_order, n, in_order ? 0 : 2);
  for (uint64_t turn = 0; turn < repeat; turn++) {
    if (subject->prepare)
      subject->prepare(n);
    for (int which = 0; which < N_OPERATIONS; which++) {
      const uint32_t *indices = which == LOOKUP ? lookup_order : order;
      uint64_t start = now_ns();
      for (uint32_t i = 0; i < n; i++)
        subject->operations[which](indices[i]);
      ns[which] += now_ns() - start;
    }
    if (subject->finish)
      subject->finish();
  }
  for (int which = 0; which < N_OPERATIONS; which++)
    series[which].ns[series[which].n++] = (double)ns[which] / (double)(n * repeat);
}

/* ---- the tree -------------------------------------------------------------------------------- */

static struct btree tree;

static void tree_insert(uint32_t i) {
  nodes[i].start = start_of(i);
  nodes[i].last = start_of(i) + PAGE - 1;
  MUST(!btree_insert(&tree, &nodes[i]));
}

static void tree_lookup(uint32_t i) {
  uint64_t at = start_of(i) + 5;
  MUST(btree_find(&tree, at, at) == &nodes[i]);
}

static void tree_erase(uint32_t i) { btree_erase(&tree, &nodes[i]); }

/* ---- tsearch() of the C library -------------------------------------------------------------- */

static void *root;

static int compare(const void *a, const void *b) {
  uint64_t x = ((const struct interval *)a)->start, y = ((const struct interval *)b)->start;
  return x < y ? -1 : x > y;
}

static void libc_insert(uint32_t i) {
  nodes[i].start = start_of(i);
  MUST(tsearch(&nodes[i], &root, compare));
}

static void libc_lookup(uint32_t i) { MUST(tfind(&nodes[i], &root, compare)); }

static void libc_erase(uint32_t i) { MUST(tdelete(&nodes[i], &root, compare)); }

/* ---- an address space ------------------------------------------------------------------------ */

static struct iofs_mm *mm;
static struct iofs_iopt *iopt;

static void iopt_begin(uint32_t n) {
  (void)n;
  MUST((iopt = iofs_iopt_new()));
}

static void iopt_end(void) { iofs_iopt_free(iopt); }

static void iopt_map(uint32_t i) {
  uint64_t iova = start_of(i);
  MUST(!iofs_iopt_map_user(iopt, mm, &no_charge, PAGE, PAGE, IOFS_READ, 1, &iova));
}

static void iopt_lookup(uint32_t i) {
  struct iofs_piece_list *list;
  MUST(!iofs_iopt_get_pieces(iopt, start_of(i), PAGE, &list));
  iofs_piece_list_free(list);
}

static void iopt_unmap(uint32_t i) {
  struct iofs_range notify;
  uint64_t unmapped = 0;
  MUST(!iofs_iopt_unmap(iopt, start_of(i), PAGE, &unmapped, &notify));
}

static unsigned long long bytes_per_area(void) {
  size_t before = mallinfo2().uordblks;
  iopt_begin(LARGE);
  for (uint32_t i = 0; i < LARGE; i++)
    iopt_map(i);
  size_t after = mallinfo2().uordblks;
  iopt_end();
  return (after - before) / LARGE;
}

int main(void) {
  static const struct subject tree_alone = {
      "tree", NULL, {tree_insert, tree_lookup, tree_erase}, NULL};
  static const struct subject libc = {"libc", NULL, {libc_insert, libc_lookup, libc_erase}, NULL};
  static const struct subject space = {
      "address space", iopt_begin, {iopt_map, iopt_lookup, iopt_unmap}, iopt_end};
  static struct series tree_small[N_OPERATIONS], tree_large[N_OPERATIONS], libc_large[N_OPERATIONS],
      space_small[N_OPERATIONS], space_large[N_OPERATIONS], line_small[N_OPERATIONS],
      line_large[N_OPERATIONS];
  char figure[80];

  MUST((nodes = calloc(LARGE, sizeof *nodes)) && (order = calloc(LARGE, sizeof *order)) &&
       (lookup_order = calloc(LARGE, sizeof *lookup_order)) && !iofs_mm_open(getpid(), &mm));
  for (int round = 0; round < ROUNDS; round++) {
    run_round(&tree_alone, SMALL, 0, tree_small);
    run_round(&tree_alone, LARGE, 0, tree_large);
    run_round(&libc, LARGE, 0, libc_large);
    run_round(&space, SMALL, 0, space_small);
    run_round(&space, LARGE, 0, space_large);
    run_round(&space, SMALL, 1, line_small);
    run_round(&space, LARGE, 1, line_large);
  }
  for (int which = 0; which < N_OPERATIONS; which++) {
    const char *name = operation_names[which];
    snprintf(figure, sizeof figure, "tree of 1e6: %s, random order", name);
    report(figure, &tree_large[which], "tsearch() tree of 1e6", &libc_large[which], " ");
    report(figure, &tree_large[which], "tree of 1e3", &tree_small[which], " ");
  }
  unsigned long long bytes = bytes_per_area();
  for (int which = 0; which < N_OPERATIONS; which++) {
    const char *name = operation_names[which];
    snprintf(figure, sizeof figure, "IOAS of 1e6 areas: %s, random order", name);
    report(figure, &space_large[which], "IOAS of 1e3 areas", &space_small[which],
           "\"bytes_per_area\": %llu", bytes);
    snprintf(figure, sizeof figure, "IOAS of 1e6 areas: %s, in order", name);
    report(figure, &line_large[which], "IOAS of 1e3 areas", &line_small[which],
           "\"bytes_per_area\": %llu", bytes);
  }
  iofs_mm_put(mm);
  return 0;
}
