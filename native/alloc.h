/*
 * Memory of the native core. Everything that the core allocates passes through here, so that a
 * test can make the nth allocation fail (iofs_fail_allocation()) and see that this leaves no trace.
 */
#ifndef IOFS_ALLOC_H
#define IOFS_ALLOC_H

#include <stddef.h>
#include <stdint.h>

#include "slab.h"

void *alloc_zeroed(size_t size);               /* NULL: no memory */
void *alloc_array(size_t n, size_t size);      /* zeroed; NULL also if n * size overflows */
void *alloc_aligned(size_t size, size_t align); /* zeroed */
void alloc_free(void *memory);                 /* takes NULL */

/* Objects of a pool (slab.h); not zeroed. */
void *alloc_object(struct slab_pool *pool); /* NULL: no memory */
void alloc_free_object(struct slab_pool *pool, void *object);

#endif
