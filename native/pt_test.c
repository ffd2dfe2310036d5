/* Page tables against a naive array of pages. */
#include "pt.h"

#include <errno.h>
#include <string.h>

#include "iommufs.h"
#include "stats.h"
#include "test.h"

#define K4 (1ull << 12)
#define M2 (1ull << 21)
#define G1 (1ull << 30)
#define ALL (K4 | M2 | G1)
#define LAST48 ((1ull << 48) - 1)
#define K2 (1ull << 11)
#define EVERY (~0ull << 11 & LAST48)

static uint64_t seed;
static const struct pt_format *format;

static void test_leaves_are_as_large_as_alignment_allows(void) {
  struct pt pt;
  struct pt_leaf leaf;
  CHECK_EQ(pt_init(&pt, format, ALL, LAST48), 0);
  CHECK_EQ(pt.n_levels, 4);
  CHECK_EQ(pt_map(&pt, G1 - K4, 7 * G1 - K4, K4 + G1 + M2 + K4, IOFS_READ, ALL), 0);
  CHECK(pt_find(&pt, G1 - K4, &leaf) && leaf.length == K4 && leaf.phys == 7 * G1 - K4);
  CHECK(pt_find(&pt, G1 + 5, &leaf) && leaf.length == G1 - 5 && leaf.phys == 7 * G1 + 5);
  CHECK(pt_find(&pt, 2 * G1, &leaf) && leaf.length == M2);
  CHECK(pt_find(&pt, 2 * G1 + M2, &leaf) && leaf.length == K4 && leaf.prot == IOFS_READ);
  CHECK(!pt_find(&pt, 2 * G1 + M2 + K4, &leaf));
  CHECK(!pt_find(&pt, G1 - K4 - 1, &leaf));
  /* root, one table of 1 GiB, two of 2 MiB, two of 4 KiB */
  CHECK_EQ(pt.n_bytes, 6 * 4096);
  pt_unmap(&pt, G1 - K4, K4 + G1 + M2 + K4);
  CHECK_EQ(pt.n_bytes, 4096);
  pt_destroy(&pt);
  CHECK_EQ(stats.table_bytes, 0);
}

static void test_incongruent_addresses_use_small_leaves(void) {
  struct pt pt;
  struct pt_leaf leaf;
  CHECK_EQ(pt_init(&pt, format, ALL, LAST48), 0);
  CHECK_EQ(pt_map(&pt, G1, 8 * G1 + M2, G1, IOFS_WRITE, ALL), 0);
  CHECK(pt_find(&pt, G1, &leaf) && leaf.length == M2 && leaf.phys == 8 * G1 + M2);
  pt_unmap(&pt, G1, G1);
  CHECK_EQ(pt_map(&pt, G1, 8 * G1 + K4, M2, IOFS_WRITE, ALL), 0);
  CHECK(pt_find(&pt, G1, &leaf) && leaf.length == K4);
  pt_unmap(&pt, G1, M2);
  CHECK_EQ(pt_map(&pt, G1, 8 * G1, G1, IOFS_WRITE, K4), 0); /* large leaves forbidden */
  CHECK(pt_find(&pt, G1, &leaf) && leaf.length == K4);
  pt_destroy(&pt);
}

static void test_widths(void) {
  struct pt pt;
  struct pt_leaf leaf;
  CHECK_EQ(pt_init(&pt, format, ALL, (1ull << 39) - 1), 0);
  CHECK_EQ(pt.n_levels, 3);
  pt_destroy(&pt);
  CHECK_EQ(pt_init(&pt, format, ALL, UINT64_MAX), 0);
  CHECK_EQ(pt.n_levels, 6);
  CHECK_EQ(pt_map(&pt, -K4, G1, K4, IOFS_READ | IOFS_WRITE, ALL), 0);
  CHECK(pt_find(&pt, UINT64_MAX, &leaf) && leaf.phys == G1 + K4 - 1 && leaf.length == 1);
  pt_unmap(&pt, -K4, K4);
  pt_destroy(&pt);
  CHECK_EQ(pt_init(&pt, format, ALL, 0xfffff), 0); /* one level: no larger leaves than pages */
  CHECK_EQ(pt.sizes, K4);
  pt_destroy(&pt);
  if (!format->lg2)
    CHECK_EQ(pt_init(&pt, format, K4 | 1 << 20, LAST48), -EINVAL);
  CHECK_EQ(pt_init(&pt, format, 0, LAST48), -EINVAL);
  CHECK_EQ(pt_init(&pt, format, K4 >> 1 | M2 >> 1, LAST48), -EINVAL);
}

static void test_a_map_without_memory_leaves_nothing(void) {
  struct pt pt;
  struct pt_leaf leaf;
  int n = 0, err;
  do {
    iofs_fail_allocation(0);
    CHECK_EQ(pt_init(&pt, format, ALL, LAST48), 0);
    iofs_fail_allocation((uint64_t)++n);
    err = pt_map(&pt, G1 - K4, 8 * G1 - K4, G1 + M2 + 2 * K4, IOFS_READ, K4 | M2);
    if (err) {
      CHECK_EQ(err, -ENOMEM);
      CHECK_EQ(pt.n_bytes, 4096);
      CHECK(!pt_find(&pt, G1 - K4, &leaf));
    }
    pt_destroy(&pt);
    CHECK_EQ(stats.table_bytes, 0);
  } while (err);
  CHECK(iofs_fail_allocation(0));
  CHECK_EQ(n, 1 + 6); /* two tables of level 2 … 6 tables beside the root */
}

enum { N_PAGES = 4096 }; /* eight 2 MiB regions */

static void test_random_maps(void) {
  static uint64_t phys_of[N_PAGES]; /* 0: not mapped */
  static unsigned run_of[N_PAGES];  /* pages of the mapping that begins here */
  struct pt pt;
  struct pt_leaf leaf;
  uint64_t base = 5 * G1, sizes = format->lg2 ? EVERY & -K4 : ALL;
  memset(phys_of, 0, sizeof phys_of);
  memset(run_of, 0, sizeof run_of);
  CHECK_EQ(pt_init(&pt, format, sizes, LAST48), 0);
  for (int step = 0; step < 3000; step++) {
    unsigned at = (unsigned)(test_random(&seed) % N_PAGES), n = 0;
    if (run_of[at]) {
      pt_unmap(&pt, base + at * K4, run_of[at] * K4);
      memset(phys_of + at, 0, run_of[at] * sizeof *phys_of);
      run_of[at] = 0;
    } else {
      unsigned want = (unsigned)(test_random(&seed) % 1200) + 1;
      while (n < want && at + n < N_PAGES && !phys_of[at + n])
        n++;
      if (!n)
        continue;
      uint64_t phys = (test_random(&seed) % 64 + 1) * G1 +
                      (test_random(&seed) % 2 ? at * K4 : test_random(&seed) % 512 * K4);
      CHECK_EQ(pt_map(&pt, base + at * K4, phys, n * K4, IOFS_READ, sizes), 0);
      run_of[at] = n;
      for (unsigned i = 0; i < n; i++)
        phys_of[at + i] = phys + i * K4;
    }
    for (unsigned i = 0; i < N_PAGES; i += 1 + step % 7) {
      int found = pt_find(&pt, base + i * K4 + 17, &leaf);
      CHECK_EQ(found, phys_of[i] != 0);
      CHECK(!found || leaf.phys == phys_of[i] + 17);
    }
  }
  for (unsigned i = 0; i < N_PAGES; i++)
    if (run_of[i])
      pt_unmap(&pt, base + i * K4, run_of[i] * K4);
  CHECK_EQ(pt.n_bytes, 4096);
  pt_destroy(&pt);
}

/* As the specification draws them: the next level is 3, 2, 1, and 0 in a leaf wherever it is; 7 in
 * leaves of other sizes, whose address tells the size. */
static void test_entries_of_amd(void) {
  struct pt pt;
  format = &pt_amd;
  CHECK_EQ(pt_init(&pt, format, ALL, LAST48), 0);
  CHECK_EQ(pt_map(&pt, 0, 5 * G1, K4, IOFS_READ, ALL), 0);
  CHECK_EQ(pt_map(&pt, G1, 6 * G1, G1, IOFS_WRITE, ALL), 0);
  const uint64_t *table = pt.root;
  for (uint64_t level = 3; level; level--) {
    CHECK_EQ(table[0] >> 52, 0x600);
    CHECK_EQ(table[0] & 0xfff, level << 9 | 1);
    if (level == 2)
      CHECK_EQ(table[1], 1ull << 62 | 6 * G1 | 1);
    table = format->table(table[0]);
  }
  CHECK_EQ(table[0], 1ull << 61 | 5 * G1 | 1);
  pt_destroy(&pt);

  struct pt_leaf leaf;
  CHECK_EQ(pt_init(&pt, format, EVERY & -K4, (1ull << 21) - 1), 0);
  CHECK_EQ(pt_map(&pt, K4, G1 + K4, 7 * K4, IOFS_READ, EVERY & -K4), 0);
  CHECK_EQ(pt_map(&pt, 16 * K4, 3 * G1, 16 * K4, IOFS_WRITE, EVERY & -K4), 0);
  CHECK_EQ(pt.root[1], 1ull << 61 | G1 | K4 | 1);
  for (int i = 2; i < 4; i++)
    CHECK_EQ(pt.root[i], 1ull << 61 | G1 | 0x2000 | 0xe01);
  for (int i = 4; i < 8; i++)
    CHECK_EQ(pt.root[i], 1ull << 61 | G1 | 0x4000 | 0x1e01);
  for (int i = 16; i < 32; i++)
    CHECK_EQ(pt.root[i], 1ull << 62 | 3 * G1 | 0x7e01);
  CHECK(pt_find(&pt, 5 * K4 + 1, &leaf) && leaf.phys == G1 + 5 * K4 + 1 && leaf.length == 3 * K4 - 1);
  CHECK(pt_find(&pt, 31 * K4, &leaf) && leaf.phys == 3 * G1 + 15 * K4 && leaf.length == K4);
  CHECK(leaf.prot == IOFS_WRITE && !pt_find(&pt, 8 * K4, &leaf));
  pt_unmap(&pt, K4, 7 * K4);
  CHECK(!pt.root[4] && pt.root[16]);
  pt_destroy(&pt);
}

/* The mock's format: any power of two, each as equal entries side by side. */
static void test_leaves_of_every_size(void) {
  struct pt pt;
  struct pt_leaf leaf;
  CHECK_EQ(pt_init(&pt, &pt_mock, EVERY, (1ull << 31) - 1), 0);
  CHECK_EQ(pt_map(&pt, M2 - 3 * K2, G1 + M2 - 3 * K2, 8 * K2, IOFS_READ, EVERY), 0);
  CHECK(pt_find(&pt, M2 - 3 * K2, &leaf) && leaf.length == K2);
  CHECK(pt_find(&pt, M2 - 1, &leaf) && leaf.length == 1 && leaf.phys == G1 + M2 - 1);
  CHECK(pt_find(&pt, M2 - 2 * K2 + 7, &leaf) && leaf.length == 2 * K2 - 7);
  CHECK(pt_find(&pt, M2 + K2, &leaf) && leaf.length == 3 * K2 && leaf.phys == G1 + M2 + K2);
  CHECK(pt_find(&pt, M2 + 4 * K2, &leaf) && leaf.length == K2 && leaf.prot == IOFS_READ);
  CHECK(!pt_find(&pt, M2 + 5 * K2, &leaf));
  pt_unmap(&pt, M2 - 3 * K2, 8 * K2);
  CHECK(!pt_find(&pt, M2 + K2, &leaf));
  CHECK_EQ(pt.n_bytes, 4096);
  pt_destroy(&pt);
}

static void test_dirty_bits(void) {
  struct pt pt;
  const uint64_t half = K4, whole = 2 * K4;
  CHECK_EQ(pt_init(&pt, format, EVERY & -K4, (1ull << 31) - 1), 0);
  CHECK_EQ(pt_map(&pt, 0, 0, 2 * whole, IOFS_WRITE, half | whole), 0);
  for (int i = 0; i < 4; i++) { /* through whichever entry of the leaf */
    pt_set_dirty(&pt, i * half);
    CHECK_EQ(pt_read_dirty(&pt, i / 2 * whole, 0), 1);
    CHECK_EQ(pt_read_dirty(&pt, (1 - i / 2) * whole, 0), 0);
    CHECK_EQ(pt_read_dirty(&pt, i / 2 * whole + half, 1), 1);
    CHECK_EQ(pt_read_dirty(&pt, i / 2 * whole, 0), 0);
  }
  pt_set_dirty(&pt, 0);
  pt_set_dirty(&pt, G1); /* nothing is mapped there */
  pt_clean(&pt);
  CHECK_EQ(pt_read_dirty(&pt, 0, 0), 0);
  pt_destroy(&pt);
}

int main(int argc, char **argv) {
  const struct pt_format *const formats[] = {&pt_vtd, &pt_amd};
  seed = test_seed(argc, argv);
  for (int i = 0; i < 2; i++) {
    format = formats[i];
    RUN(test_leaves_are_as_large_as_alignment_allows);
    RUN(test_incongruent_addresses_use_small_leaves);
    RUN(test_widths);
    RUN(test_a_map_without_memory_leaves_nothing);
    RUN(test_random_maps);
  }
  RUN(test_entries_of_amd);
  RUN(test_leaves_of_every_size);
  format = &pt_mock;
  RUN(test_dirty_bits);
  format = &pt_amd;
  RUN(test_dirty_bits);
  return 0;
}
