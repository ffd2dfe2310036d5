/* The core's memory, with a countdown to a failure that tests ask for (see alloc.h). */
#include "alloc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "iommufs.h"

static _Atomic uint64_t countdown;

static int fails_now(void) {
  uint64_t left = atomic_load_explicit(&countdown, memory_order_relaxed);
  while (left)
    if (atomic_compare_exchange_weak(&countdown, &left, left - 1))
      return left == 1;
  return 0;
}

void *alloc_zeroed(size_t size) { return fails_now() ? NULL : calloc(1, size); }

void *alloc_array(size_t n, size_t size) { return fails_now() ? NULL : calloc(n, size); }

void *alloc_aligned(size_t size, size_t align) {
  void *memory;
  if (fails_now() || posix_memalign(&memory, align, size))
    return NULL;
  return memset(memory, 0, size);
}

void alloc_free(void *memory) { free(memory); }

#ifdef __SANITIZE_ADDRESS__ /* which knows the bounds and the end of what malloc() made */

void *alloc_object(struct slab_pool *pool) {
  void *memory;
  return fails_now() || posix_memalign(&memory, 64, pool->size) ? NULL : memory;
}

void alloc_free_object(struct slab_pool *pool, void *object) {
  (void)pool;
  free(object);
}

#else

void *alloc_object(struct slab_pool *pool) { return fails_now() ? NULL : slab_alloc(pool); }

void alloc_free_object(struct slab_pool *pool, void *object) { slab_free(pool, object); }

#endif

uint64_t iofs_fail_allocation(uint64_t n) { return atomic_exchange(&countdown, n); }
