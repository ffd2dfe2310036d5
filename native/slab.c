/* Slabs (see slab.h). */
#define _GNU_SOURCE
#include "slab.h"

#include <assert.h>
#include <stdint.h>
#include <sys/mman.h>

#define SLAB_BYTES (2ull << 20)
#define HEADER 64
/* What the last slab of a pool may keep resident when it is empty. */
#define KEPT (64ull << 10)

struct slab {
  struct slab *next, *prev; /* of those with room */
  void *free;               /* a list through the first word of each object that was freed */
  uint32_t n_used, n_touched, n;
};

_Static_assert(sizeof(struct slab) <= HEADER, "the header of a slab");

static struct slab *slab_of(const void *object) {
  return (struct slab *)((uintptr_t)object & ~(SLAB_BYTES - 1));
}

static int is_full(const struct slab *slab) { return slab->n_used == slab->n; }

/* ---- address space ---------------------------------------------------------------------------- */

static void *map_aligned(void) {
  char *memory = mmap(NULL, 2 * SLAB_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED)
    return NULL;
  size_t before = -(uintptr_t)memory & (SLAB_BYTES - 1);
  if (before)
    munmap(memory, before);
  munmap(memory + before + SLAB_BYTES, SLAB_BYTES - before);
  return memory + before;
}

/* Ordinary pages for the first one, or the system's choice: where huge pages are off, or none is
 * left, the kernel takes small ones by itself. */
static void choose_pages(struct slab *slab, int is_first) {
  madvise(slab, SLAB_BYTES, is_first ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
}

/* ---- the slabs with room ---------------------------------------------------------------------- */

static void link_slab(struct slab_pool *pool, struct slab *slab) {
  slab->prev = NULL;
  slab->next = pool->partial;
  if (slab->next)
    slab->next->prev = slab;
  pool->partial = slab;
}

static void unlink_slab(struct slab_pool *pool, struct slab *slab) {
  if (slab->next)
    slab->next->prev = slab->prev;
  *(slab->prev ? &slab->prev->next : &pool->partial) = slab->next;
}

static struct slab *new_slab(struct slab_pool *pool) {
  struct slab *slab = map_aligned();
  if (!slab)
    return NULL;
  choose_pages(slab, !pool->n_slabs++);
  slab->n = (uint32_t)((SLAB_BYTES - HEADER) / pool->size);
  return slab;
}

static void drop_spare(struct slab_pool *pool) {
  if (!pool->spare)
    return;
  munmap(pool->spare, SLAB_BYTES);
  pool->spare = NULL;
  pool->n_slabs--;
}

/* The only slab of a pool, which has become empty, begins anew. */
static void clean(const struct slab_pool *pool, struct slab *slab) {
  uint32_t n = slab->n;
  if (slab->n_touched * pool->size <= KEPT)
    return;
  madvise(slab, SLAB_BYTES, MADV_DONTNEED);
  choose_pages(slab, 1);
  slab->n = n; /* all else is 0, as in a new one */
}

/* ---- objects ---------------------------------------------------------------------------------- */

/* A slab with room, in the list of those. */
static struct slab *find_slab(struct slab_pool *pool) {
  struct slab *slab = pool->partial;
  if (slab)
    return slab;
  slab = pool->spare ? pool->spare : new_slab(pool);
  pool->spare = NULL;
  if (slab)
    link_slab(pool, slab);
  return slab;
}

static void *take(const struct slab_pool *pool, struct slab *slab) {
  void *object = slab->free;
  slab->n_used++;
  if (object)
    slab->free = *(void **)object;
  else
    object = (char *)slab + HEADER + slab->n_touched++ * pool->size;
  return object;
}

void *slab_alloc(struct slab_pool *pool) {
  void *object = NULL;
  pthread_mutex_lock(&pool->lock);
  struct slab *slab = find_slab(pool);
  if (slab) {
    object = take(pool, slab);
    if (is_full(slab))
      unlink_slab(pool, slab);
  }
  pthread_mutex_unlock(&pool->lock);
  return object;
}

static void give_back(struct slab_pool *pool, struct slab *slab, void *object) {
  if (is_full(slab))
    link_slab(pool, slab);
  *(void **)object = slab->free;
  slab->free = object;
  slab->n_used--;
}

/* One slab may stay empty, so that an object that comes and goes does not take a slab with it each
 * time, until another one has much room. */
void slab_free(struct slab_pool *pool, void *object) {
  struct slab *slab = slab_of(object);
  pthread_mutex_lock(&pool->lock);
  assert(slab->n_used);
  give_back(pool, slab, object);
  if (slab->n_used <= slab->n / 2)
    drop_spare(pool);
  if (!slab->n_used) {
    unlink_slab(pool, slab);
    pool->spare = slab;
    if (pool->n_slabs == 1)
      clean(pool, slab);
  }
  pthread_mutex_unlock(&pool->lock);
}
