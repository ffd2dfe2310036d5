/*
 * What MAP, MAP_FILE, COPY and UNMAP promise, rule by rule in the order in which the kernel checks
 * them (iopt_map_user_pages() and what it calls), without a domain. pages_test.c has the pins.
 */
#define _GNU_SOURCE
#include "iommufs.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "test.h"

#define RW (IOFS_READ | IOFS_WRITE)
#define TOP UINT64_MAX

static uint64_t seed;
static struct iofs_mm *mm;
static struct iofs_iopt *iopt;
static const struct iofs_charge no_charge = {IOFS_CHARGE_NONE, 0, 0};

static void begin(void) {
  CHECK_EQ(iofs_mm_open_process(getpid(), &mm), 0);
  iopt = iofs_iopt_new();
}

static void end(void) {
  struct iofs_stats left;
  iofs_iopt_free(iopt);
  iofs_mm_put(mm);
  iofs_statistics(&left);
  CHECK_EQ(left.iopts + left.areas + left.pages + left.mms, 0);
}

static int map_at(uint64_t va, uint64_t length, uint64_t iova) {
  return iofs_iopt_map_user(iopt, mm, &no_charge, va, length, RW, 1, &iova);
}

/* The chosen IOVA, or -errno. */
static int64_t map_auto(uint64_t va, uint64_t length) {
  uint64_t iova = 0x1234;
  int err = iofs_iopt_map_user(iopt, mm, &no_charge, va, length, RW, 0, &iova);
  return err ? err : (int64_t)iova;
}

static int unmap(uint64_t iova, uint64_t length, uint64_t *unmapped) {
  struct iofs_range range;
  *unmapped = 0;
  return iofs_iopt_unmap(iopt, iova, length, unmapped, &range);
}

static uint64_t unmap_all(void) {
  struct iofs_range range;
  uint64_t unmapped = 0;
  CHECK_EQ(iofs_iopt_unmap_all(iopt, &unmapped, &range), 0);
  return unmapped;
}

static void test_map_checks_in_order(void) {
  begin();
  CHECK_EQ(map_at(TOP, 1, 0), -EOVERFLOW); /* the exclusive end counts */
  CHECK_EQ(map_at(TOP - 4095, 4096, 0), -EOVERFLOW);
  CHECK_EQ(map_at(0x1000, 0, 0), -EINVAL);
  CHECK_EQ(map_at(0, TOP - 4095, 0), -EINVAL);
  CHECK_EQ(map_at(0, 4096, TOP - 10), -EOVERFLOW);
  CHECK_EQ(iofs_iopt_reserve(iopt, 0x5000, 0x5fff, 1), 0);
  CHECK_EQ(map_at(0, 0x2000, 0x4000), -EINVAL);
  CHECK_EQ(map_at(0, 1, 0x5fff), -EINVAL);
  CHECK_EQ(map_at(0, 0x1000, 0x4000), 0);
  CHECK_EQ(map_at(0, 1, 0x4fff), -EEXIST);
  CHECK_EQ(map_at(0, 0x1001, 0x4fff), -EINVAL); /* reserved comes before the overlap */
  CHECK_EQ(iofs_iopt_n_areas(iopt), 1);
  end();
}

static void test_without_a_domain_anything_goes(void) {
  begin();
  CHECK_EQ(map_at(0xdead0001, 1, 3), 0);
  CHECK_EQ(map_at(0, 1, 4), 0);
  CHECK_EQ(map_at(0xffff800000000000, 0x1000, 0x7001), 0);
  CHECK_EQ(map_at(0x1000, 1ull << 62, 1ull << 60), 0);
  CHECK_EQ(iofs_iopt_alignment(iopt), 1);
  end();
}

static void test_alignment_of_huge_pages_off(void) {
  begin();
  CHECK_EQ(iofs_iopt_huge_pages(iopt), 1);
  CHECK_EQ(map_at(0x1000, 0x1001, 0x10000), 0);
  CHECK_EQ(iofs_iopt_set_huge_pages(iopt, 0), -EADDRINUSE);
  unmap_all();
  CHECK_EQ(iofs_iopt_set_huge_pages(iopt, 0), 0);
  CHECK_EQ(iofs_iopt_set_huge_pages(iopt, 0), 0);
  CHECK_EQ(iofs_iopt_alignment(iopt), 4096);
  CHECK_EQ(map_at(0x1000, 0x800, 0x1000), -EINVAL);
  CHECK_EQ(map_at(0x1000, 0x1000, 0x1800), -EINVAL);
  CHECK_EQ(map_at(0x1800, 0x1000, 0x1000), -EINVAL); /* the page offset of the source */
  CHECK_EQ(map_auto(0x1800, 0x1000), -EINVAL);
  CHECK_EQ(map_at(0x1000, 0x1000, 0x1000), 0);
  CHECK_EQ(iofs_iopt_set_huge_pages(iopt, 1), 0);
  CHECK_EQ(iofs_iopt_alignment(iopt), 1);
  end();
}

static void test_automatic_iova(void) {
  begin();
  /* The oracle's answers, section map. */
  CHECK_EQ(map_auto(0x100000000000, 4096), 0x1000);
  CHECK_EQ(map_auto(0x100000000000, 65536), 0x10000);
  CHECK_EQ(map_auto(0x100000000000, 2 << 20), 0x200000);
  CHECK_EQ(map_auto(0x100000000010, 4096), 0x2010);
  CHECK_EQ(map_auto(0, TOP / 2), -EOVERFLOW);
  CHECK_EQ(map_auto(0, 1), 0x2000); /* the hole below the one before */
  end();
}

static void test_automatic_iova_of_large_lengths_and_full_spaces(void) {
  begin();
  CHECK_EQ(map_auto(0x40000000, 8 << 20), 2 << 20); /* aligned no better than to 2 MiB */
  CHECK_EQ(map_auto(0, 8 << 20), 10 << 20);
  CHECK_EQ(iofs_iopt_reserve(iopt, 0x1300000, TOP, 1), 0);
  CHECK_EQ(map_auto(0x40000000, 2 << 20), -ENOSPC);
  CHECK_EQ(map_auto(0x40000000, 0x1000), 0x1000);
  CHECK_EQ(iofs_iopt_reserve(iopt, 0, 0xfff, 1), 0);
  iofs_iopt_remove_reserved(iopt, 1);
  unmap_all();
  CHECK_EQ(iofs_iopt_reserve(iopt, 0, TOP, 2), 0);
  CHECK_EQ(map_auto(0, 1), -ENOSPC);
  end();
}

static void test_automatic_iova_in_allowed_ranges(void) {
  struct iofs_range one[] = {{0x8000, 0x8fff}}, touching[] = {{0xa000, 0xafff}, {0x9000, 0x9fff}};
  begin();
  CHECK_EQ(iofs_iopt_set_allowed(iopt, one, 1), 0);
  CHECK_EQ(map_auto(0x1000, 0x1000), 0x8000);
  CHECK_EQ(map_auto(0x1000, 0x1000), -ENOSPC);
  CHECK_EQ(map_at(0x1000, 0x1000, 0x1000), 0); /* fixed ones need not be allowed */
  CHECK_EQ(iofs_iopt_set_allowed(iopt, touching, 2), 0);
  CHECK_EQ(map_auto(0x1000, 0x2000), 0x9000);
  end();
}

static void test_automatic_iova_avoids_reserved_and_ends(void) {
  struct iofs_range last_page[] = {{TOP - 4096, TOP}};
  begin();
  CHECK_EQ(iofs_iopt_reserve(iopt, 0, 0x10fff, 1), 0);
  CHECK_EQ(iofs_iopt_reserve(iopt, 0x10800, 0x12fff, 2), 0); /* they may overlap */
  CHECK_EQ(map_auto(0x1000, 0x1000), 0x13000);
  CHECK_EQ(iofs_iopt_set_allowed(iopt, last_page, 1), 0);
  CHECK_EQ(map_auto(1, 1), -ENOSPC); /* a hole of one byte is none */
  end();
}

/* First fit by looking at every byte of the first 64 KiB. */
static int64_t naive_fit(const uint8_t *busy, uint64_t va, uint64_t length) {
  uint64_t align = 1, low = va & -va, span = 0x10000;
  while (align < length)
    align *= 2;
  if (va && align > low)
    align = low;
  /* The allowed span itself is aligned first, and only then searched. */
  uint64_t begin = (0x1000 + align - 1) & -align;
  begin |= va % 4096;
  if (begin >= span - 1 || span - 1 - begin < length - 1)
    return -ENOSPC;
  for (uint64_t hole = begin; hole < span; hole++) {
    if (busy[hole] || (hole > begin && !busy[hole - 1]))
      continue;
    uint64_t last = hole, at = ((hole + align - 1) & -align) | va % 4096;
    while (last + 1 < span && !busy[last + 1])
      last++;
    if (at < last && last - at >= length - 1)
      return (int64_t)at;
  }
  return -ENOSPC;
}

static void test_automatic_iova_is_first_fit(void) {
  static uint8_t busy[0x10000];
  struct iofs_range window[] = {{0x1000, 0xffff}};
  begin();
  CHECK_EQ(iofs_iopt_set_allowed(iopt, window, 1), 0);
  for (int step = 0; step < 3000; step++) {
    uint64_t length = test_random(&seed) % 700 + 1, unmapped, at = test_random(&seed) % 0x10000;
    uint64_t va = test_random(&seed) % 3 ? 0x10000 + test_random(&seed) % 64 * 16
                                         : test_random(&seed) % 2 * 0x100000;
    if (step % 3 == 0 && busy[at]) {
      while (at && busy[at - 1] == busy[at])
        at--;
      uint64_t last = at;
      while (last < 0xffff && busy[last + 1] == busy[at])
        last++;
      CHECK_EQ(unmap(at, last - at + 1, &unmapped), 0);
      CHECK_EQ(unmapped, last - at + 1);
      for (; at <= last; at++)
        busy[at] = 0;
      continue;
    }
    int64_t expected = naive_fit(busy, va, length), got = map_auto(va, length);
    CHECK_EQ(got, expected);
    for (uint64_t i = 0; got >= 0 && i < length; i++)
      busy[(uint64_t)got + i] = (uint8_t)(step % 255 + 1);
  }
  end();
}

static void test_unmap(void) {
  uint64_t unmapped;
  begin();
  CHECK_EQ(unmap_all(), 0);
  CHECK_EQ(unmap(0x1000, 0x1000, &unmapped), 0);
  CHECK_EQ(unmapped, 0);
  CHECK_EQ(unmap(0x1000, 0, &unmapped), -EINVAL);
  CHECK_EQ(unmap(TOP - 1, 3, &unmapped), -EOVERFLOW);
  CHECK_EQ(map_at(0, 0x1000, 0x1000), 0);
  CHECK_EQ(map_at(0, 0x2000, 0x8000), 0);
  CHECK_EQ(unmap(0x1000, 0xfff, &unmapped), -ENOENT);
  CHECK_EQ(unmap(0x1001, 0xfff, &unmapped), -ENOENT);
  /* Not atomic: what came before the failure is gone. */
  CHECK_EQ(unmap(0, 0x9000, &unmapped), -ENOENT);
  CHECK_EQ(unmapped, 0x1000);
  CHECK_EQ(iofs_iopt_n_areas(iopt), 1);
  CHECK_EQ(unmap(0x7123, 0x3000, &unmapped), 0);
  CHECK_EQ(unmapped, 0x2000);
  CHECK_EQ(map_at(0, 1, TOP), 0);
  CHECK_EQ(unmap(TOP, 1, &unmapped), 0);
  CHECK_EQ(map_at(0, 0x3000, 0x1000), 0);
  CHECK_EQ(map_at(0, 0x3000, 0x10000), 0);
  CHECK_EQ(unmap_all(), 0x6000);
  end();
}

static void test_many_areas_go_at_once(void) {
  enum { MANY = 25000 };
  struct iofs_stats left;
  begin();
  for (int times = 0; times < 2; times++) {
    for (uint64_t i = 0; i < MANY; i++)
      CHECK_EQ(map_at(i << 12, 0x1000, i * 7 % MANY << 13), 0);
    if (!times)
      CHECK_EQ(unmap_all(), MANY * 0x1000ull);
    CHECK_EQ(iofs_iopt_n_areas(iopt), times ? MANY : 0);
  }
  iofs_iopt_free(iopt);
  iofs_mm_put(mm);
  do /* another thread frees them */
    iofs_statistics(&left);
  while (left.iopts + left.areas + left.pages + left.mms);
}

static struct iofs_piece_list *pieces(uint64_t iova, uint64_t length) {
  struct iofs_piece_list *list;
  CHECK_EQ(iofs_iopt_get_pieces(iopt, iova, length, &list), 0);
  return list;
}

static int copy(uint64_t from, uint64_t length, uint32_t prot, uint64_t to) {
  struct iofs_piece_list *list = pieces(from, length);
  int err = iofs_iopt_map_pieces(iopt, list, prot, 1, &to);
  iofs_piece_list_free(list);
  return err;
}

static void test_copy(void) {
  struct iofs_piece_list *list;
  struct iofs_stats stats;
  uint64_t iova = 0x20000;
  begin();
  CHECK_EQ(map_at(0x10000, 0x1000, 0x1000), 0);
  CHECK_EQ(map_at(0x50000, 0x1000, 0x2000), 0);
  CHECK_EQ(iofs_iopt_map_user(iopt, mm, &no_charge, 0, 0x1000, IOFS_READ, 1, &iova), 0);
  CHECK_EQ(iofs_iopt_get_pieces(iopt, 0x1000, 0, &list), -EINVAL);
  CHECK_EQ(iofs_iopt_get_pieces(iopt, TOP, 2, &list), -EOVERFLOW);
  CHECK_EQ(iofs_iopt_get_pieces(iopt, 0x1000, 0x2001, &list), -ENOENT);
  CHECK_EQ(iofs_iopt_get_pieces(iopt, 0xfff, 2, &list), -ENOENT);
  CHECK_EQ(copy(0x1800, 0x1000, RW, 0x30000), 0); /* bytes of two areas become two areas */
  CHECK_EQ(iofs_iopt_n_areas(iopt), 5);
  CHECK_EQ(copy(0x1800, 0x1000, RW, 0x30800), -EEXIST);
  CHECK_EQ(copy(0x20000, 0x1000, RW, 0x40000), -EPERM);
  CHECK_EQ(copy(0x20000, 0x1000, IOFS_READ, 0x40000), 0);
  CHECK_EQ(copy(0x1000, 0x1000, IOFS_WRITE, 0x41000), 0);
  iofs_statistics(&stats);
  CHECK_EQ(stats.pages, 3);
  /* All or nothing: the second piece hits what is there. */
  CHECK_EQ(copy(0x1000, 0x2000, RW, 0x40000 - 0x1000), -EEXIST);
  /* The list keeps its pages; an automatic IOVA follows the address of the first piece. */
  list = pieces(0x1810, 0x20);
  unmap_all();
  CHECK_EQ(iofs_iopt_map_pieces(iopt, list, RW, 0, &iova), 0);
  CHECK_EQ(iova, 0x1810);
  iofs_piece_list_free(list);
  end();
}

static void test_copy_checks_each_piece_after_the_place(void) {
  struct iofs_piece_list *list;
  uint64_t iova = 0x30000;
  begin();
  CHECK_EQ(map_at(0x10000, 0x800, 0x1000), 0);
  CHECK_EQ(map_at(0x50000, 0x800, 0x1800), 0);
  list = pieces(0x1000, 0x1000);
  unmap_all();
  CHECK_EQ(iofs_iopt_set_huge_pages(iopt, 0), 0);
  iova = 0x30800;
  CHECK_EQ(iofs_iopt_map_pieces(iopt, list, RW, 1, &iova), -EINVAL);
  CHECK_EQ(iofs_iopt_n_areas(iopt), 0);
  iofs_piece_list_free(list);
  end();
}

static void test_map_file(void) {
  uint64_t iova = 0x1000;
  int pipes[2], fd = memfd_create("test", 0);
  begin();
  CHECK_EQ(pipe(pipes), 0);
#define MAP_FILE_AT(fd, start, length) \
  iofs_iopt_map_file(iopt, mm, &no_charge, fd, start, length, RW, 1, &iova)
  CHECK_EQ(MAP_FILE_AT(-1, 0, 0), -EINVAL);
  CHECK_EQ(MAP_FILE_AT(-1, TOP, 2), -EOVERFLOW);
  CHECK_EQ(MAP_FILE_AT(-1, TOP, 1), -EBADF);
  CHECK_EQ(MAP_FILE_AT(fd, 0x100000, 0x1000), 0); /* past the end: seen when it is pinned */
  iova = 0x2000;
  CHECK_EQ(MAP_FILE_AT(pipes[0], 0, 0x1000), 0);
  CHECK_EQ(MAP_FILE_AT(pipes[0], 0, 0x1000), -EEXIST);
  CHECK_EQ(iofs_iopt_map_file(iopt, mm, &no_charge, fd, 0x2345, 0x10, RW, 0, &iova), 0);
  CHECK_EQ(iova, 0x3345);
  close(pipes[0]);
  close(pipes[1]);
  close(fd);
  end();
}

static void test_holes_are_what_is_not_reserved(void) {
  struct iofs_range out[4];
  begin();
  CHECK_EQ(iofs_iopt_holes(iopt, out, 4), 1);
  CHECK(out[0].start == 0 && out[0].last == TOP);
  CHECK_EQ(iofs_iopt_reserve(iopt, 0x1000, 0x1fff, 1), 0);
  CHECK_EQ(iofs_iopt_reserve(iopt, 0x2000, 0x2fff, 1), 0);
  CHECK_EQ(iofs_iopt_reserve(iopt, 0x1800, 0x27ff, 2), 0);
  CHECK_EQ(iofs_iopt_reserve(iopt, 0x8000, TOP, 2), 0);
  CHECK_EQ(map_at(0, 0x1000, 0x4000), 0); /* areas do not matter */
  CHECK_EQ(iofs_iopt_holes(iopt, out, 1), 2);
  CHECK(out[0].start == 0 && out[0].last == 0xfff);
  CHECK_EQ(iofs_iopt_holes(iopt, out, 4), 2);
  CHECK(out[1].start == 0x3000 && out[1].last == 0x7fff);
  iofs_iopt_remove_reserved(iopt, 1);
  CHECK_EQ(iofs_iopt_holes(iopt, out, 4), 2);
  CHECK(out[0].last == 0x17ff && out[1].start == 0x2800);
  iofs_iopt_remove_reserved(iopt, 2);
  unmap_all();
  CHECK_EQ(iofs_iopt_reserve(iopt, 0, TOP, 3), 0);
  CHECK_EQ(iofs_iopt_holes(iopt, out, 4), 0);
  end();
}

static void test_reserved_and_allowed_exclude_each_other(void) {
  struct iofs_range good[] = {{0x1000, 0x1fff}, {0x2000, 0x2fff}};
  struct iofs_range overlap[] = {{0x1000, 0x2000}, {0x2000, 0x2fff}}, byte[] = {{5, 5}};
  begin();
  CHECK_EQ(iofs_iopt_set_allowed(iopt, overlap, 2), -EINVAL);
  CHECK_EQ(iofs_iopt_set_allowed(iopt, byte, 1), -EINVAL);
  CHECK_EQ(iofs_iopt_set_allowed(iopt, good, 2), 0);
  CHECK_EQ(iofs_iopt_reserve(iopt, 0x2fff, 0x3fff, 1), -EADDRINUSE);
  CHECK_EQ(iofs_iopt_reserve(iopt, 0x3000, 0x3fff, 1), 0);
  struct iofs_range hit[] = {{0x100, 0x200}, {0x3fff, 0x4fff}};
  CHECK_EQ(iofs_iopt_set_allowed(iopt, hit, 2), -EADDRINUSE);
  CHECK_EQ(map_auto(0, 0x2000), -ENOSPC); /* rounded up to 0x2000 only 0x1000 is left: old list */
  CHECK_EQ(iofs_iopt_set_allowed(iopt, NULL, 0), 0);
  CHECK_EQ(map_at(0, 0x1000, 0x8000), 0);
  CHECK_EQ(iofs_iopt_reserve(iopt, 0x8fff, 0x9fff, 1), -EADDRINUSE);
  end();
}

static void test_cut(void) {
  uint64_t unmapped;
  begin();
  CHECK_EQ(map_at(0x10000, 0x4000, 0x1000), 0);
  CHECK_EQ(iofs_iopt_cut(iopt, 0x1000), 0); /* the first byte, the last one, a hole: nothing */
  CHECK_EQ(iofs_iopt_cut(iopt, 0x4fff), 0);
  CHECK_EQ(iofs_iopt_cut(iopt, 0x9000), 0);
  CHECK_EQ(iofs_iopt_n_areas(iopt), 1);
  CHECK_EQ(iofs_iopt_cut(iopt, 0x1800), 0);
  CHECK_EQ(iofs_iopt_n_areas(iopt), 2);
  CHECK_EQ(unmap(0x1801, 0x37ff, &unmapped), 0);
  CHECK_EQ(unmap(0x1000, 0x801, &unmapped), 0);
  CHECK_EQ(iofs_iopt_set_huge_pages(iopt, 0), 0);
  CHECK_EQ(map_at(0x10000, 0x4000, 0x1000), 0);
  CHECK_EQ(iofs_iopt_cut(iopt, 0x1800), -EINVAL);
  CHECK_EQ(iofs_iopt_cut(iopt, 0x1fff), 0);
  end();
}

static void test_no_memory_leaves_no_trace(void) {
  struct iofs_stats stats;
  for (int n = 1, fails = 1; fails; n++) {
    struct iofs_range range = {0x100000, 0x1fffff};
    struct iofs_piece_list *list = NULL;
    uint64_t auto_iova = 0;
    begin();
    CHECK_EQ(map_at(0x10000, 0x2000, 0x1000), 0);
    CHECK_EQ(map_at(0x20000, 0x2000, 0x3000), 0);
    iofs_fail_allocation((uint64_t)n);
    int err = iofs_iopt_get_pieces(iopt, 0x1000, 0x4000, &list);
    if (!err)
      err = iofs_iopt_map_pieces(iopt, list, RW, 0, &auto_iova);
    CHECK(!err || iofs_iopt_n_areas(iopt) == 2);
    if (!err)
      err = map_at(0x10000, 0x1000, 0x80000);
    if (!err)
      err = iofs_iopt_set_allowed(iopt, &range, 1);
    if (!err)
      err = iofs_iopt_reserve(iopt, 0x200000, 0x2fffff, 1);
    if (!err)
      err = iofs_iopt_cut(iopt, 0x1fff);
    fails = !iofs_fail_allocation(0);
    CHECK_EQ(err, fails ? -ENOMEM : 0);
    if (list)
      iofs_piece_list_free(list);
    unmap_all();
    iofs_statistics(&stats);
    CHECK_EQ(stats.pages, 0);
    end();
    CHECK(n < 30);
  }
}

int main(int argc, char **argv) {
  seed = test_seed(argc, argv);
  RUN(test_map_checks_in_order);
  RUN(test_without_a_domain_anything_goes);
  RUN(test_alignment_of_huge_pages_off);
  RUN(test_automatic_iova);
  RUN(test_automatic_iova_of_large_lengths_and_full_spaces);
  RUN(test_automatic_iova_in_allowed_ranges);
  RUN(test_automatic_iova_avoids_reserved_and_ends);
  RUN(test_automatic_iova_is_first_fit);
  RUN(test_unmap);
  RUN(test_many_areas_go_at_once);
  RUN(test_copy);
  RUN(test_copy_checks_each_piece_after_the_place);
  RUN(test_map_file);
  RUN(test_holes_are_what_is_not_reserved);
  RUN(test_reserved_and_allowed_exclude_each_other);
  RUN(test_cut);
  RUN(test_no_memory_leaves_no_trace);
  return 0;
}
