/*
 * Many areas, in random order and in the order of their addresses: the tree alone against std::map,
 * and an address space with all that an area needs. 1,000,000 against 1,000 shows what the size
 * costs; in random order that are misses of the caches.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <unistd.h>

#include "bench.h"
#include "btree.h"
#include "iommufs.h"

#define ROUNDS 3
#define SMALL 1000
#define LARGE 1000000
#define MIDDLE 100000 /* what Python is compared with */
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
  uint64_t ns[N_OPERATIONS] = {0}, repeat = LARGE / n; /* all do as many operations */
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

/* ---- std::map (stdmap.cc) -------------------------------------------------------------------- */

void stdmap_insert(uint64_t start, uint64_t last);
int stdmap_lookup(uint64_t at);
void stdmap_erase(uint64_t start);

static void map_insert(uint32_t i) { stdmap_insert(start_of(i), start_of(i) + PAGE - 1); }

static void map_lookup(uint32_t i) { MUST(stdmap_lookup(start_of(i) + 5)); }

static void map_erase(uint32_t i) { stdmap_erase(start_of(i)); }

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

enum { TREE, MAP, SPACE, N_SUBJECTS };
static const struct subject subjects[N_SUBJECTS] = {
    {"tree", NULL, {tree_insert, tree_lookup, tree_erase}, NULL},
    {"std::map", NULL, {map_insert, map_lookup, map_erase}, NULL},
    {"IOAS", iopt_begin, {iopt_map, iopt_lookup, iopt_unmap}, iopt_end},
};

/* By subject, whether it is large, whether it is in order, operation. */
static struct series all[N_SUBJECTS][2][2][N_OPERATIONS];

/* Half a record: run.py adds the peers. */
static void report_middle(const struct series *middle) {
  static const struct series nobody;
  char figure[80];
  for (int which = 0; which < N_OPERATIONS; which++) {
    snprintf(figure, sizeof figure, "tree of 1e5: %s, random order", operation_names[which]);
    report(figure, &middle[which], "", &nobody, " ");
  }
}

static void report_order(int which, int in_order, unsigned long long bytes) {
  const char *operation = operation_names[which], *order_name = in_order ? "in" : "random";
  const struct series *tree_1e6 = &all[TREE][1][in_order][which];
  char figure[80];
  snprintf(figure, sizeof figure, "tree of 1e6: %s, %s order", operation, order_name);
  report(figure, tree_1e6, "std::map of 1e6", &all[MAP][1][in_order][which], " ");
  report(figure, tree_1e6, "tree of 1e3", &all[TREE][0][in_order][which], " ");
  snprintf(figure, sizeof figure, "IOAS of 1e6 areas: %s, %s order", operation, order_name);
  report(figure, &all[SPACE][1][in_order][which], "IOAS of 1e3 areas",
         &all[SPACE][0][in_order][which], "\"bytes_per_area\": %llu", bytes);
}

int main(void) {
  static struct series middle[N_OPERATIONS];
  MUST((nodes = calloc(LARGE, sizeof *nodes)) && (order = calloc(LARGE, sizeof *order)) &&
       (lookup_order = calloc(LARGE, sizeof *lookup_order)) && !iofs_mm_open(getpid(), &mm));
  for (int round = 0; round < ROUNDS; round++) {
    run_round(&subjects[TREE], MIDDLE, 0, middle);
    for (int large = 0; large < 2; large++)
      for (int in_order = 0; in_order < 2; in_order++)
        for (int i = 0; i < N_SUBJECTS; i++)
          run_round(&subjects[i], large ? LARGE : SMALL, in_order, all[i][large][in_order]);
  }
  unsigned long long bytes = bytes_per_area();
  for (int in_order = 0; in_order < 2; in_order++)
    for (int which = 0; which < N_OPERATIONS; which++)
      report_order(which, in_order, bytes);
  report_middle(middle);
  iofs_mm_put(mm);
  return 0;
}
