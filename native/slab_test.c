/* Slabs: objects never overlap, few of them cost few pages, and what is empty goes back. */
#define _GNU_SOURCE
#include "slab.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "test.h"

enum { SIZE = 112, SLAB = 2 << 20, IN_SLAB = 18724, MAX = 3 * IN_SLAB + 100 };

static uint64_t seed;
static struct slab_pool pool = SLAB_POOL(SIZE);
static unsigned char *objects[MAX];
static unsigned n_objects;

/* Each object is full of what follows from where it lies. */
static void add(void) {
  unsigned char *made = slab_alloc(&pool);
  CHECK(made);
  memset(made, (int)((uintptr_t)made / SIZE & 255), SIZE);
  objects[n_objects++] = made;
}

static void take(unsigned i) {
  unsigned char *object = objects[i];
  for (unsigned byte = 0; byte < SIZE; byte++)
    CHECK_EQ(object[byte], (uintptr_t)object / SIZE & 255);
  objects[i] = objects[--n_objects];
  slab_free(&pool, object);
}

static void take_all(void) {
  while (n_objects)
    take((unsigned)(test_random(&seed) % n_objects));
}

static unsigned resident_pages(const void *object) {
  unsigned char present[SLAB / 4096];
  unsigned n = 0;
  CHECK_EQ(mincore((void *)((uintptr_t)object & -(uintptr_t)SLAB), SLAB, present), 0);
  for (unsigned i = 0; i < sizeof present; i++)
    n += present[i] & 1;
  return n;
}

static void test_objects_lie_side_by_side(void) {
  struct slab_pool nodes = SLAB_POOL(768);
  add();
  add();
  CHECK_EQ(objects[1] - objects[0], SIZE);
  unsigned char *first = objects[0];
  take(0);
  add();
  CHECK(objects[1] == first);
  take_all();
  void *node = slab_alloc(&nodes);
  CHECK(node && (uintptr_t)node % 64 == 0);
  slab_free(&nodes, node);
}

static void test_few_objects_cost_few_pages(void) {
  while (n_objects < 100)
    add();
  CHECK(resident_pages(objects[0]) <= 4);
  take_all();
}

static void test_many_come_and_go(void) {
  while (n_objects < MAX)
    add();
  CHECK_EQ(pool.n_slabs, 4);
  for (int step = 0; step < 200000; step++) {
    int growing = step / 20000 % 2;
    if (n_objects < MAX && (!n_objects || test_random(&seed) % 4 > (growing ? 0 : 2)))
      add();
    else
      take((unsigned)(test_random(&seed) % n_objects));
  }
  CHECK(pool.n_slabs <= 4);
  take_all();
  CHECK_EQ(pool.n_slabs, 1);
  CHECK(resident_pages(pool.spare) <= 1);
}

/* Else an object that comes and goes would take its slab with it each time. */
static void test_one_slab_may_stay_empty(void) {
  while (n_objects < IN_SLAB + 1)
    add();
  CHECK_EQ(pool.n_slabs, 2);
  take(IN_SLAB);
  CHECK_EQ(pool.n_slabs, 2);
  add();
  CHECK_EQ(pool.n_slabs, 2);
  take(IN_SLAB);
  while (n_objects > IN_SLAB / 2)
    take(0);
  CHECK_EQ(pool.n_slabs, 1);
  take_all();
  CHECK_EQ(pool.n_slabs, 1);
  CHECK(resident_pages(pool.spare) <= 1);
}

int main(int argc, char **argv) {
  seed = test_seed(argc, argv);
  RUN(test_objects_lie_side_by_side);
  RUN(test_few_objects_cost_few_pages);
  RUN(test_many_come_and_go);
  RUN(test_one_slab_may_stay_empty);
  return 0;
}
