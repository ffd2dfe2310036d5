/* Domains: how they join an iopt, what they hold, how they leave. */
#define _GNU_SOURCE
#include "domain.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "iommufs.h"
#include "charge.h"
#include "stats.h"
#include "test.h"

#define K4 4096ull
#define M2 (2ull << 20)
#define G1 (1ull << 30)
#define RW (IOFS_READ | IOFS_WRITE)

static uint64_t seed;
static struct iofs_mm *mm;
static struct iofs_iopt *iopt;
static char *memory; /* 16 pages, private */
static const struct iofs_charge no_charge = {IOFS_CHARGE_NONE, 0, 0};

static struct iofs_domain *new_domain(uint64_t start, uint64_t last, uint64_t sizes) {
  struct iofs_domain_config config = {start, last, sizes, IOFS_PT_VTD};
  struct iofs_domain *domain;
  CHECK_EQ(iofs_domain_new(&config, &domain), 0);
  return domain;
}

static struct iofs_domain *usual_domain(void) {
  return new_domain(0, (1ull << 48) - 1, K4 | M2 | G1);
}

static void begin(void) {
  iopt = iofs_iopt_new();
  memory = mmap(NULL, 16 * K4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void end(void) {
  iofs_iopt_free(iopt);
  munmap(memory, 16 * K4);
  CHECK_EQ(stats.iopts + stats.areas + stats.pages + stats.pinned_pages + stats.domains, 0);
  CHECK_EQ(stats.table_bytes + stats.source_maps + stats.users, 0);
}

static int map_at(const void *at, uint64_t length, uint64_t iova) {
  return iofs_iopt_map_user(iopt, mm, &no_charge, (uintptr_t)at, length, RW, 1, &iova);
}

static uint64_t unmap_all(void) {
  struct iofs_range range;
  uint64_t unmapped = 0;
  CHECK_EQ(iofs_iopt_unmap_all(iopt, &unmapped, &range), 0);
  return unmapped;
}

static int has(const struct iofs_domain *domain, uint64_t iova) {
  struct pt_leaf leaf;
  return pt_find(&domain->pt, iova, &leaf);
}

static void test_a_domain_must_make_sense(void) {
  struct iofs_domain *domain;
  struct iofs_domain_config backwards = {5, 4, K4, 0}, odd = {0, G1, K4 | K4 << 1, 0},
                            none = {0, G1, 0, 0}, unknown = {0, G1, K4, IOFS_PT_MOCK + 1};
  CHECK_EQ(iofs_domain_new(&backwards, &domain), -EINVAL);
  CHECK_EQ(iofs_domain_new(&odd, &domain), -EINVAL);
  CHECK_EQ(iofs_domain_new(&none, &domain), -EINVAL);
  CHECK_EQ(iofs_domain_new(&unknown, &domain), -EINVAL);
  CHECK_EQ(stats.domains + stats.table_bytes, 0);
}

static void test_alignment_rises_and_falls(void) {
  begin();
  struct iofs_domain *large = new_domain(0, G1 - 1, M2), *usual = usual_domain();
  CHECK_EQ(iofs_iopt_add_domain(iopt, large), -EINVAL); /* pages larger than the CPU's */
  CHECK_EQ(map_at(memory, 0x800, 0x1000), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, usual), -EADDRINUSE);
  unmap_all();
  CHECK_EQ(map_at(memory + 0x800, 0x1000, 0x1000), 0); /* only the page offset is wrong */
  CHECK_EQ(iofs_iopt_add_domain(iopt, usual), -EADDRINUSE);
  unmap_all();
  CHECK_EQ(iofs_iopt_add_domain(iopt, usual), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, usual), -EINVAL);
  CHECK_EQ(iofs_iopt_alignment(iopt), 4096);
  CHECK_EQ(map_at(memory, 0x800, 0x1000), -EINVAL);
  iofs_iopt_remove_domain(iopt, usual);
  CHECK_EQ(iofs_iopt_alignment(iopt), 1);
  iofs_domain_put(large);
  iofs_domain_put(usual);
  end();
}

static void test_the_aperture_reserves_the_rest(void) {
  struct iofs_range out[4], allowed = {0x4000, 0x5000};
  begin();
  struct iofs_domain *domain = new_domain(0x10000, 0xfffffff, K4);
  CHECK_EQ(map_at(memory, K4, 0x10000000), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), -EADDRINUSE);
  CHECK_EQ(iofs_iopt_holes(iopt, out, 4), 1); /* also what was reserved before the failure */
  unmap_all();
  CHECK_EQ(iofs_iopt_set_allowed(iopt, &allowed, 1), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), -EADDRINUSE);
  CHECK_EQ(iofs_iopt_set_allowed(iopt, NULL, 0), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
  CHECK_EQ(iofs_iopt_holes(iopt, out, 4), 1);
  CHECK(out[0].start == 0x10000 && out[0].last == 0xfffffff);
  CHECK_EQ(map_at(memory, K4, 0xf000), -EINVAL);
  iofs_iopt_remove_domain(iopt, domain);
  CHECK_EQ(iofs_iopt_holes(iopt, out, 4), 1);
  CHECK_EQ(out[0].last, UINT64_MAX);
  iofs_domain_put(domain);
  end();
}

static void test_a_domain_takes_in_all_or_nothing(void) {
  begin();
  struct iofs_domain *domain = usual_domain();
  uint64_t empty = stats.table_bytes;
  CHECK_EQ(map_at(memory, 4 * K4, 0x100000), 0);
  CHECK_EQ(map_at(NULL, K4, 0x200000), 0); /* a hole of the client's */
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), -EFAULT);
  CHECK_EQ(stats.pinned_pages, 0);
  CHECK_EQ(stats.table_bytes, empty);
  CHECK_EQ(iofs_iopt_alignment(iopt), 1);
  unmap_all();
  CHECK_EQ(map_at(memory, 4 * K4, 0x100000), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
  CHECK_EQ(stats.pinned_pages, 4);
  CHECK_EQ(map_at(memory + 8 * K4, 2 * K4, 0x200000), 0);
  CHECK_EQ(map_at(NULL, K4, 0x300000), -EFAULT);
  CHECK_EQ(iofs_iopt_n_areas(iopt), 2);
  CHECK(has(domain, 0x100000) && has(domain, 0x201fff) && !has(domain, 0x202000));
  CHECK_EQ(unmap_all(), 6 * K4);
  CHECK_EQ(stats.table_bytes, empty);
  iofs_iopt_remove_domain(iopt, domain);
  iofs_domain_put(domain);
  end();
}

static void test_no_access_right_is_refused_by_a_domain(void) {
  uint64_t iova = 0x1000;
  begin();
  struct iofs_domain *domain = usual_domain();
  CHECK_EQ(iofs_iopt_map_user(iopt, mm, &no_charge, (uintptr_t)memory, K4, 0, 1, &iova), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), -EINVAL);
  unmap_all();
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
  CHECK_EQ(iofs_iopt_map_user(iopt, mm, &no_charge, (uintptr_t)memory, K4, 0, 1, &iova), -EINVAL);
  CHECK_EQ(stats.pinned_pages, 0);
  iofs_iopt_remove_domain(iopt, domain);
  iofs_domain_put(domain);
  end();
}

static void test_several_domains_pin_once(void) {
  begin();
  struct iofs_domain *one = usual_domain(), *two = usual_domain(), *three = usual_domain();
  CHECK_EQ(map_at(memory, 4 * K4, 0x100000), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, one), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, two), 0);
  CHECK_EQ(map_at(memory, 4 * K4, 0x200000), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, three), 0);
  CHECK_EQ(stats.pinned_pages, 8);
  iofs_iopt_remove_domain(iopt, one);
  CHECK(!has(one, 0x100000) && has(two, 0x100000) && has(three, 0x200000));
  CHECK_EQ(stats.pinned_pages, 8);
  iofs_iopt_remove_domain(iopt, two);
  CHECK_EQ(map_at(memory, K4, 0x300000), 0);
  CHECK(has(three, 0x300000) && !has(two, 0x300000));
  iofs_iopt_remove_domain(iopt, three);
  CHECK_EQ(stats.pinned_pages, 0);
  CHECK_EQ(iofs_iopt_n_areas(iopt), 3);
  iofs_domain_put(one);
  iofs_domain_put(two);
  iofs_domain_put(three);
  end();
}

static int copy(uint64_t from, uint64_t length, uint64_t to) {
  struct iofs_piece_list *list;
  CHECK_EQ(iofs_iopt_get_pieces(iopt, from, length, &list), 0);
  int err = iofs_iopt_map_pieces(iopt, list, RW, 1, &to);
  iofs_piece_list_free(list);
  return err;
}

static void test_copies_share_pins(void) {
  struct iofs_range range;
  uint64_t unmapped = 0;
  begin();
  struct iofs_domain *domain = usual_domain();
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
  CHECK_EQ(map_at(memory, 8 * K4, 0x100000), 0);
  CHECK_EQ(copy(0x102000, 2 * K4, 0x200000), 0);
  CHECK_EQ(stats.pinned_pages, 8);
  CHECK_EQ(iofs_iopt_unmap(iopt, 0x100000, 8 * K4, &unmapped, &range), 0);
  CHECK_EQ(stats.pinned_pages, 2);
  CHECK_EQ(copy(0x201000, K4, 0x300000), 0);
  CHECK_EQ(unmap_all(), 3 * K4);
  CHECK_EQ(stats.pinned_pages, 0);
  iofs_iopt_remove_domain(iopt, domain);
  iofs_domain_put(domain);
  end();
}

static void test_the_limit_of_locked_memory(void) {
  struct iofs_charge charge = {IOFS_CHARGE_USER, 77, getpid()};
  struct rlimit old, low;
  uint64_t iova = 0x100000;
  begin();
  CHECK_EQ(getrlimit(RLIMIT_MEMLOCK, &old), 0);
  low = (struct rlimit){6 * K4, old.rlim_max};
  CHECK_EQ(setrlimit(RLIMIT_MEMLOCK, &low), 0);
  struct iofs_domain *domain = usual_domain();
  CHECK_EQ(iofs_iopt_map_user(iopt, mm, &charge, (uintptr_t)memory, 8 * K4, RW, 1, &iova), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), -ENOMEM);
  CHECK_EQ(charge_of_user(77), 0);
  unmap_all();
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
  CHECK_EQ(iofs_iopt_map_user(iopt, mm, &charge, (uintptr_t)memory, 4 * K4, RW, 1, &iova), 0);
  CHECK_EQ(copy(iova, 4 * K4, 0x200000), 0);
  CHECK_EQ(charge_of_user(77), 4);
  iova = 0x300000;
  CHECK_EQ(iofs_iopt_map_user(iopt, mm, &charge, (uintptr_t)memory, 4 * K4, RW, 1, &iova), -ENOMEM);
  CHECK_EQ(setrlimit(RLIMIT_MEMLOCK, &old), 0);
  unmap_all();
  iofs_iopt_remove_domain(iopt, domain);
  iofs_domain_put(domain);
  end();
}

static void test_a_gigabyte_costs_one_leaf_and_no_page(void) {
  begin();
  struct iofs_domain *domain = usual_domain();
  char *big = mmap(NULL, 2 * G1, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  unsigned char resident[16];
  struct pt_leaf leaf;
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
  CHECK_EQ(map_at(big + 0x5000, G1, 7 * G1), 0);
  CHECK(pt_find(&domain->pt, 7 * G1, &leaf) && leaf.length == G1);
  CHECK_EQ(domain->pt.n_bytes, 2 * 4096);
  CHECK_EQ(mincore(big + 0x5000, 16 * K4, resident), 0);
  CHECK(!resident[0] && !resident[15]);
  unmap_all();
  /* Without huge pages there are only small leaves. */
  iofs_iopt_remove_domain(iopt, domain);
  CHECK_EQ(iofs_iopt_set_huge_pages(iopt, 0), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
  CHECK_EQ(map_at(big, 4 * M2, G1), 0);
  CHECK(pt_find(&domain->pt, G1, &leaf) && leaf.length == K4);
  munmap(big, 2 * G1);
  unmap_all();
  iofs_iopt_remove_domain(iopt, domain);
  iofs_domain_put(domain);
  end();
}

static void test_cut_under_a_domain(void) {
  struct iofs_range range;
  uint64_t unmapped = 0;
  begin();
  struct iofs_domain *domain = usual_domain();
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
  CHECK_EQ(map_at(memory, 8 * K4, 0x100000), 0);
  CHECK_EQ(iofs_iopt_cut(iopt, 0x100fff), -EINVAL); /* huge pages on */
  unmap_all();
  iofs_iopt_remove_domain(iopt, domain);
  CHECK_EQ(iofs_iopt_set_huge_pages(iopt, 0), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
  CHECK_EQ(map_at(memory, 8 * K4, 0x100000), 0);
  CHECK_EQ(iofs_iopt_cut(iopt, 0x101ffe), -EINVAL);
  CHECK_EQ(iofs_iopt_cut(iopt, 0x101fff), 0);
  CHECK_EQ(iofs_iopt_cut(iopt, 0x105fff), 0);
  CHECK_EQ(iofs_iopt_unmap(iopt, 0x102000, 4 * K4, &unmapped, &range), 0);
  CHECK_EQ(stats.pinned_pages, 4);
  CHECK(has(domain, 0x101fff) && !has(domain, 0x102000) && has(domain, 0x106000));
  iofs_iopt_remove_domain(iopt, domain);
  CHECK_EQ(stats.pinned_pages, 0);
  iofs_domain_put(domain);
  end();
}

static void test_no_memory_leaves_no_trace(void) {
  for (int n = 1, fails = 1; fails; n++) {
    struct iofs_domain_config config = {0x1000, (1ull << 48) - 1, K4 | M2 | G1, IOFS_PT_VTD};
    struct iofs_domain *one = usual_domain(), *two = NULL;
    begin();
    CHECK_EQ(map_at(memory, 4 * K4, 0x100000), 0);
    CHECK_EQ(map_at(memory + 4 * K4, 4 * K4, 0x40000000), 0);
    CHECK_EQ(iofs_iopt_add_domain(iopt, one), 0);
    uint64_t tables = stats.table_bytes;
    iofs_fail_allocation((uint64_t)n);
    int err = iofs_domain_new(&config, &two);
    if (!err)
      err = iofs_iopt_add_domain(iopt, two);
    if (!err && (err = map_at(memory + 8 * K4, 4 * K4, 1ull << 40)))
      iofs_iopt_remove_domain(iopt, two);
    fails = !iofs_fail_allocation(0);
    CHECK_EQ(err, fails ? -ENOMEM : 0);
    if (err && two)
      iofs_domain_put(two);
    if (err) {
      CHECK_EQ(stats.pinned_pages, 8);
      CHECK_EQ(stats.table_bytes, tables);
      CHECK_EQ(iofs_iopt_n_areas(iopt), 2);
    } else {
      iofs_iopt_remove_domain(iopt, two);
      iofs_domain_put(two);
    }
    iofs_iopt_remove_domain(iopt, one);
    iofs_domain_put(one);
    end();
    CHECK(n < 60);
  }
}

/* Areas, copies and domains come and go; what is pinned and mapped is what a list says. */
static void test_random_sequences(void) {
  enum { N_SLOTS = 40, N_DOMAINS = 3 };
  struct iofs_domain *domains[N_DOMAINS];
  int slots[N_SLOTS] = {0}, members[N_DOMAINS] = {0}, n_members = 0;
  begin();
  for (int i = 0; i < N_DOMAINS; i++)
    domains[i] = usual_domain();
  for (int step = 0; step < 3000; step++) {
    int i = (int)(test_random(&seed) % N_SLOTS), n = 0;
    uint64_t iova = 0x100000 + (uint64_t)i * 16 * K4, unmapped = 0;
    struct iofs_range range;
    if (step % 8 == 0) {
      int d = (int)(test_random(&seed) % N_DOMAINS);
      if (members[d])
        iofs_iopt_remove_domain(iopt, domains[d]);
      else
        CHECK_EQ(iofs_iopt_add_domain(iopt, domains[d]), 0);
      n_members += members[d] ? -1 : 1;
      members[d] ^= 1;
    } else if (slots[i]) {
      CHECK_EQ(iofs_iopt_unmap(iopt, iova, 16 * K4, &unmapped, &range), 0);
      CHECK_EQ(unmapped, (uint64_t)slots[i] * K4);
      slots[i] = 0;
    } else {
      slots[i] = (int)(test_random(&seed) % 16) + 1;
      CHECK_EQ(map_at(memory, (uint64_t)slots[i] * K4, iova), 0);
    }
    for (int k = 0; k < N_SLOTS; k++) {
      n += slots[k];
      for (int d = 0; d < N_DOMAINS; d++) {
        uint64_t base = 0x100000 + (uint64_t)k * 16 * K4;
        CHECK_EQ(has(domains[d], base), members[d] && slots[k]);
        CHECK_EQ(has(domains[d], base + 15 * K4), members[d] && slots[k] == 16);
      }
    }
    CHECK_EQ(stats.pinned_pages, n_members ? n : 0);
  }
  for (int d = 0; d < N_DOMAINS; d++) {
    if (members[d])
      iofs_iopt_remove_domain(iopt, domains[d]);
    iofs_domain_put(domains[d]);
  }
  end();
}

static void test_dirty_ranges(void) {
  struct iofs_domain_config config = {0, G1 - 1, K4, IOFS_PT_MOCK};
  struct iofs_domain *domain;
  struct iofs_range out[2];
  struct iofs_dma_fault fault;
  begin();
  CHECK_EQ(iofs_domain_new(&config, &domain), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
  CHECK_EQ(map_at(memory, 8 * K4, 0), 0);
  CHECK_EQ(map_at(memory, K4, 9 * K4), 0);
  CHECK_EQ(iofs_dma_write(domain, 0, "x", 1, &fault), 0);
  iofs_domain_set_dirty_tracking(domain, 1);
  CHECK_EQ(iofs_dma_write(domain, 2 * K4 - 1, "xy", 2, &fault), 0);
  CHECK_EQ(iofs_dma_read(domain, 0, (char[1]){0}, 1, &fault), 0);
  /* Pages 4, 6 and 9 from 0 on: 9 is behind the hole. */
  CHECK_EQ(iofs_domain_mark_dirty(domain, 0, K4, (uint8_t[]){0x50, 0x02}, 16), 3);
  uint64_t at = 0;
  CHECK_EQ(iofs_domain_read_dirty(domain, &at, 16 * K4 - 1, 1, out, 2), 2);
  CHECK(out[0].start == K4 && out[0].last == 3 * K4 - 1);
  CHECK(out[1].start == 4 * K4 && out[1].last == 5 * K4 - 1);
  CHECK_EQ(at, 6 * K4);
  CHECK_EQ(iofs_domain_read_dirty(domain, &at, 16 * K4 - 1, 0, out, 2), 1);
  CHECK(out[0].start == 6 * K4 && out[0].last == 7 * K4 - 1);
  CHECK_EQ(at, 0);
  CHECK_EQ(iofs_domain_read_dirty(domain, &at, 5 * K4 - 1, 0, out, 2), 0);
  unmap_all();
  iofs_iopt_remove_domain(iopt, domain);
  iofs_domain_put(domain);
  end();
}

static void test_pages_have_an_identity(void) {
  struct iofs_domain *domain = usual_domain();
  begin();
  uint64_t address = (uintptr_t)memory;
  CHECK_EQ(iofs_check_pins(mm, address, 16 * K4, 0), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
  CHECK_EQ(map_at(memory, 4 * K4, 0), 0);
  CHECK_EQ(map_at(memory + 2 * K4, K4, 8 * K4), 0);
  CHECK_EQ(iofs_domain_check_map(domain, 0, 4 * K4, mm, address), 0);
  CHECK_EQ(iofs_domain_check_map(domain, 8 * K4, K4, mm, address + 2 * K4), 0);
  CHECK_EQ(iofs_domain_check_map(domain, 8 * K4, K4, mm, address), -EINVAL);
  CHECK_EQ(iofs_domain_check_map(domain, 4 * K4, K4, mm, address), -EINVAL);
  CHECK_EQ(iofs_domain_check_map(domain, 0, K4, mm, 0), -EFAULT);
  CHECK_EQ(iofs_check_pins(mm, address, 2 * K4, 1), 0);
  CHECK_EQ(iofs_check_pins(mm, address + 2 * K4, K4, 2), 0);
  CHECK_EQ(iofs_check_pins(mm, address, 3 * K4, 1), -EIO);
  CHECK_EQ(iofs_check_pins(mm, 0, K4, 0), -EFAULT);
  unmap_all();
  iofs_iopt_remove_domain(iopt, domain);
  iofs_domain_put(domain);
  end();
}

int main(int argc, char **argv) {
  seed = test_seed(argc, argv);
  CHECK_EQ(iofs_mm_open_process(getpid(), &mm), 0);
  RUN(test_a_domain_must_make_sense);
  RUN(test_alignment_rises_and_falls);
  RUN(test_the_aperture_reserves_the_rest);
  RUN(test_a_domain_takes_in_all_or_nothing);
  RUN(test_no_access_right_is_refused_by_a_domain);
  RUN(test_several_domains_pin_once);
  RUN(test_copies_share_pins);
  RUN(test_the_limit_of_locked_memory);
  RUN(test_a_gigabyte_costs_one_leaf_and_no_page);
  RUN(test_cut_under_a_domain);
  RUN(test_no_memory_leaves_no_trace);
  RUN(test_random_sequences);
  RUN(test_dirty_ranges);
  RUN(test_pages_have_an_identity);
  iofs_mm_put(mm);
  return 0;
}
