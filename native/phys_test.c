/* Emulated physical addresses: never given twice, congruent for large leaves. */
#include "phys.h"

#include <errno.h>

#include "test.h"

#define M2 (2ull << 20)
#define G1 (1ull << 30)

static uint64_t seed;

static void test_congruent_to_the_largest_leaf_that_fits(void) {
  struct itree_node a, b, c;
  CHECK_EQ(phys_reserve(&a, 3 * G1, 0x123456789000), 0);
  CHECK_EQ(a.start % G1, 0x123456789000 % G1);
  CHECK_EQ(phys_reserve(&b, M2, 0x12345000), 0);
  CHECK_EQ(b.start % M2, 0x12345000 % M2);
  CHECK_EQ(phys_reserve(&c, 4096, 0x12345678), 0);
  CHECK_EQ(c.start % 4096, 0);
  CHECK(phys_find(b.start + 5) == &b && phys_find(b.last) == &b);
  phys_release(&a);
  CHECK(!phys_find(a.start));
  phys_release(&b);
  phys_release(&c);
}

static void test_more_than_there_is(void) {
  struct itree_node a, b;
  CHECK_EQ(phys_reserve(&a, 1ull << 51, 0), -ENOMEM);
  CHECK_EQ(phys_reserve(&a, 1ull << 50, 0), 0);
  CHECK_EQ(phys_reserve(&b, 1ull << 50, 0), -ENOMEM);
  CHECK_EQ(phys_reserve(&b, 1ull << 49, 0), 0);
  phys_release(&a);
  CHECK_EQ(phys_reserve(&a, 1ull << 50, 0), 0); /* behind the cursor */
  phys_release(&a);
  phys_release(&b);
}

static void test_ranges_never_meet(void) {
  enum { N = 200 };
  static struct itree_node nodes[N];
  static int used[N];
  for (int step = 0; step < 20000; step++) {
    int i = (int)(test_random(&seed) % N);
    if (used[i])
      phys_release(&nodes[i]);
    else {
      uint64_t length = 4096ull << test_random(&seed) % 32;
      CHECK_EQ(phys_reserve(&nodes[i], length, test_random(&seed)), 0);
      CHECK_EQ(nodes[i].last - nodes[i].start + 1, length);
      for (int j = 0; j < N && step % 20 == 0; j++)
        CHECK(!used[j] || nodes[i].start > nodes[j].last || nodes[i].last < nodes[j].start);
    }
    used[i] ^= 1;
  }
  for (int i = 0; i < N; i++)
    if (used[i])
      phys_release(&nodes[i]);
}

int main(int argc, char **argv) {
  seed = test_seed(argc, argv);
  RUN(test_congruent_to_the_largest_leaf_that_fits);
  RUN(test_more_than_there_is);
  RUN(test_ranges_never_meet);
  return 0;
}
