/*
 * Slabs: objects of one size side by side in 2 MiB of address space, for kinds of which there may be
 * a million. Nothing lies between them, and from the second slab of a pool on the kernel is asked
 * for huge pages: in a virtual machine a miss of the TLB costs as much as one of the caches.
 *
 * The first slab is of ordinary pages, touched from its beginning on as objects come, so that a few
 * objects cost a few pages. A slab without objects goes back to the kernel. A pool has a lock of its
 * own, inside every other one.
 *
 * Allocated through alloc.h, which uses malloc() where a sanitizer is to watch.
 */
#ifndef IOFS_SLAB_H
#define IOFS_SLAB_H

#include <pthread.h>
#include <stddef.h>

struct slab;

struct slab_pool {
  size_t size; /* of an object; the beginning of each is a multiple of its largest power of two,
                * of 64 at most */
  pthread_mutex_t lock;
  struct slab *partial; /* those with objects and with room, a list */
  struct slab *spare;   /* without an object */
  size_t n_slabs;
};

#define SLAB_POOL(bytes) {.size = (bytes), .lock = PTHREAD_MUTEX_INITIALIZER}

void *slab_alloc(struct slab_pool *pool); /* not zeroed; NULL: no memory */
void slab_free(struct slab_pool *pool, void *object);

#endif
