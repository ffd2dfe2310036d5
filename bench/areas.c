/*
 * Many areas, in random order and in the order of their addresses: the tree alone against std::map,
 * and an address space with all that an area needs. 1,000,000 against 1,000 shows what the size
 * costs; in random order that are misses of the caches, of which one alone is measured, too.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/wait.h>
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
static uint32_t *orders[3];
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
  for (int which = 0; which < N_OPERATIONS; which++)
    fill(orders[which], n, in_order ? 0 : (uint64_t)which + 1);
  for (uint64_t turn = 0; turn < repeat; turn++) {
    if (subject->prepare)
      subject->prepare(n);
    for (int which = 0; which < N_OPERATIONS; which++) {
      const uint32_t *indices = orders[which];
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

/* ---- all at once, and memory ------------------------------------------------------------------ */

static void map_many(uint32_t n, int in_order) {
  iopt_begin(n);
  fill(orders[INSERT], n, in_order ? 0 : 1);
  for (uint32_t i = 0; i < n; i++)
    iopt_map(orders[INSERT][i]);
}

/* A map of two pages at an automatic IOVA, which no hole below the last area has room for, and its
 * unmap; then an unmap of everything, for each area. */
static void run_whole(uint32_t n, struct series *automatic, struct series *unmap_all) {
  uint64_t unmap_ns = 0, automatic_ns = 0, repeat = LARGE / n;
  for (uint64_t turn = 0; turn < repeat; turn++) {
    struct iofs_range notify;
    uint64_t unmapped = 0, iova, start;
    map_many(n, 0);
    MUST(!iofs_iopt_reserve(iopt, 0, FIRST - 1, 1));
    start = now_ns();
    for (uint32_t i = 0; i < n; i++) {
      MUST(!iofs_iopt_map_user(iopt, mm, &no_charge, 2 * PAGE, 2 * PAGE, IOFS_READ, 0, &iova));
      MUST(iova == start_of(n));
      MUST(!iofs_iopt_unmap(iopt, iova, 2 * PAGE, &unmapped, &notify));
    }
    automatic_ns += now_ns() - start;
    start = now_ns();
    MUST(!iofs_iopt_unmap_all(iopt, &unmapped, &notify));
    unmap_ns += now_ns() - start;
    iopt_end();
  }
  automatic->ns[automatic->n++] = (double)automatic_ns / LARGE;
  unmap_all->ns[unmap_all->n++] = (double)unmap_ns / LARGE;
}

static unsigned long long resident_bytes(void) {
  unsigned long long total, resident;
  FILE *file = fopen("/proc/self/statm", "r");
  MUST(file && fscanf(file, "%llu %llu", &total, &resident) == 2);
  fclose(file);
  return resident * (unsigned long long)sysconf(_SC_PAGESIZE);
}

/* What a million areas add to the memory of a process that had none. */
static unsigned long long bytes_per_area(int in_order) {
  unsigned long long bytes = 0;
  int ends[2];
  MUST(!pipe(ends));
  if (!fork()) {
    iopt_begin(0);
    fill(orders[INSERT], LARGE, 0); /* the array is there by now */
    bytes = resident_bytes();
    iopt_end();
    map_many(LARGE, in_order);
    bytes = resident_bytes() - bytes;
    MUST(write(ends[1], &bytes, sizeof bytes) == sizeof bytes);
    _exit(0);
  }
  MUST(read(ends[0], &bytes, sizeof bytes) == sizeof bytes);
  wait(NULL);
  close(ends[0]);
  close(ends[1]);
  return bytes / LARGE;
}

/* ---- one miss --------------------------------------------------------------------------------- */

/* Reads of which each says where the next one is, in memory as large as n areas, with huge pages if
 * there are any. */
static void run_reads(uint32_t n, uint64_t size, struct series *series) {
  const uint64_t huge = 2ull << 20;
  uint64_t length = (n * size + 2 * huge) & ~(huge - 1);
  char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(memory != MAP_FAILED);
  madvise(memory, length, MADV_HUGEPAGE);
  fill(orders[LOOKUP], n, 2);
  for (uint32_t i = 0; i < n; i++) {
    uint32_t next = orders[LOOKUP][i + 1 < n ? i + 1 : 0];
    memcpy(memory + orders[LOOKUP][i] * size, &next, sizeof next);
  }
  uint32_t at = 0;
  uint64_t start = now_ns();
  for (uint32_t i = 0; i < LARGE; i++)
    memcpy(&at, memory + at * size, sizeof at);
  __asm__ volatile("" ::"r"(at));
  series_add(series, start, LARGE);
  munmap(memory, length);
}

/* ---- all of it -------------------------------------------------------------------------------- */

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

static void run_all(struct series *middle) {
  for (int round = 0; round < ROUNDS; round++) {
    run_round(&subjects[TREE], MIDDLE, 0, middle);
    for (int large = 0; large < 2; large++)
      for (int in_order = 0; in_order < 2; in_order++)
        for (int i = 0; i < N_SUBJECTS; i++)
          run_round(&subjects[i], large ? LARGE : SMALL, in_order, all[i][large][in_order]);
  }
}

static void run_and_report_others(uint64_t size) {
  static struct series automatic[2], unmap_all[2], reads[2];
  for (int round = 0; round < ROUNDS; round++)
    for (int large = 0; large < 2; large++) {
      run_whole(large ? LARGE : SMALL, &automatic[large], &unmap_all[large]);
      run_reads(large ? LARGE : SMALL, size, &reads[large]);
    }
  report("IOAS of 1e6 areas: MAP + UNMAP at an automatic IOVA", &automatic[1],
         "IOAS of 1e3 areas", &automatic[0], " ");
  report("IOAS of 1e6 areas: UNMAP of all, for each", &unmap_all[1], "IOAS of 1e3 areas",
         &unmap_all[0], " ");
  report("a read that depends on the last, memory of 1e6 areas", &reads[1],
         "memory of 1e3 areas", &reads[0], "\"bytes_per_area\": %llu", (unsigned long long)size);
}

int main(void) {
  static struct series middle[N_OPERATIONS];
  MUST((nodes = calloc(LARGE, sizeof *nodes)) && !iofs_mm_open_process(getpid(), &mm));
  for (int which = 0; which < N_OPERATIONS; which++)
    MUST((orders[which] = calloc(LARGE, sizeof *orders[which])));
  unsigned long long bytes[2] = {bytes_per_area(0), bytes_per_area(1)};
  run_all(middle);
  for (int in_order = 0; in_order < 2; in_order++)
    for (int which = 0; which < N_OPERATIONS; which++)
      report_order(which, in_order, bytes[in_order]);
  run_and_report_others((bytes[0] + 7) & ~7ull);
  report_middle(middle);
  iofs_mm_put(mm);
  return 0;
}
