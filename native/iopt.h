/*
 * The I/O address space, shared by the iopt_*.c, domain.c and access.c.
 *
 *   areas     IOVA ranges in use, never overlapping, each showing a run of bytes of a pages object
 *   reserved  IOVA ranges that must stay free, each with an owner; may overlap
 *   allowed   IOVA ranges to choose from, and to keep free of reservations; none: everything
 *   domains   page tables that hold every area; accesses reach the areas without one
 *
 * All of it is under iopt->lock. Order of locks: iopt, then domain, then pages.
 */
#ifndef IOFS_IOPT_H
#define IOFS_IOPT_H

#include <pthread.h>

#include "area.h"
#include "iommufs.h"
#include "itree.h"
#include "pages.h"

struct iofs_iopt {
  pthread_mutex_t lock;
  _Atomic uint32_t refs; /* iofs_iopt_free() gives up one, readers of the transport have others */
  struct btree areas;
  struct itree reserved, allowed;
  size_t n_areas;
  uint64_t alignment;
  int no_huge_pages;
  struct iofs_domain **domains; /* the first one gives storage, see IOMMU_IOAS_… of the kernel */
  size_t n_domains;
  struct iofs_access *accesses; /* a list */
  uint64_t waiting_area;        /* start of the area whose accesses were told last */
  unsigned n_tries;             /* how often they were */
};

struct iofs_piece_list {
  size_t n;
  struct piece {
    struct pages *pages;
    uint64_t start_byte, length;
  } pieces[];
};

static inline struct area *area_of(struct interval *interval) {
  return interval ? ITREE_OF(interval, struct area, iova) : NULL;
}

/* Let its pages come with it, which as a rule are right behind and need not wait for the pointer. */
static inline struct area *fetch_area(struct interval *interval) {
  struct area *area = area_of(interval);
  if (area)
    __builtin_prefetch(area + 1);
  return area;
}

/* The first area that meets [start, last], and the next one after `area` that does; NULL: none. */
static inline struct area *find_area(const struct iofs_iopt *iopt, uint64_t start, uint64_t last) {
  return fetch_area(btree_find(&iopt->areas, start, last));
}

/* find_area(), before the area is removed, or one that begins at `start` is inserted. */
static inline struct area *seek_area(struct iofs_iopt *iopt, uint64_t start, uint64_t last) {
  return fetch_area(btree_seek(&iopt->areas, start, last));
}

static inline struct area *find_next_area(const struct iofs_iopt *iopt, const struct area *area,
                                          uint64_t last) {
  return area_of(btree_find_next(&iopt->areas, &area->iova, last));
}

static inline struct area *first_area(const struct iofs_iopt *iopt) {
  return area_of(btree_first(&iopt->areas));
}

static inline struct area *next_area(const struct iofs_iopt *iopt, const struct area *area) {
  return area_of(btree_next(&iopt->areas, &area->iova));
}

static inline uint64_t area_length(const struct area *area) {
  return area->iova.last - area->iova.start + 1;
}

static inline uint64_t area_byte(const struct area *area, uint64_t iova) {
  return area->start_byte + (iova - area->iova.start);
}

static inline uint64_t area_first_index(const struct area *area) {
  return area->start_byte >> PAGE_LG2;
}

static inline uint64_t area_last_index(const struct area *area) {
  return area_byte(area, area->iova.last) >> PAGE_LG2;
}

/* iopt.c: whoever holds it may go on mapping when it is free for Python; it all goes at the end. */
void iopt_get(struct iofs_iopt *iopt);
void iopt_put(struct iofs_iopt *iopt);

/* iopt_alloc.c: choose an IOVA for a source that begins at `address`, as iopt_alloc_iova() of the
 * kernel does: EOVERFLOW, EINVAL, ENOSPC. */
int iopt_choose_iova(const struct iofs_iopt *iopt, uint64_t address, uint64_t length,
                     uint64_t *iova);

/* iopt_reserve.c. The owner's ranges go with iopt_unreserve(). */
int iopt_reserve(struct iofs_iopt *iopt, uint64_t start, uint64_t last, iofs_owner owner);
void iopt_unreserve(struct iofs_iopt *iopt, iofs_owner owner);
void iopt_free_ranges(struct itree *tree);

/* iopt.c: whether all areas agree with an alignment (EADDRINUSE), and the one that now holds. */
int iopt_check_alignment(const struct iofs_iopt *iopt, uint64_t alignment);
void iopt_update_alignment(struct iofs_iopt *iopt);

/* domain.c: put an area into all domains, or take it out. EFAULT, ENOMEM, EINVAL. */
int iopt_fill_area(struct iofs_iopt *iopt, struct area *area);
void iopt_unfill_area(struct iofs_iopt *iopt, struct area *area);
uint64_t domain_alignment(const struct iofs_domain *domain);

/* access.c */
uint64_t access_alignment(const struct iofs_access *access);
const struct iofs_access *access_next(const struct iofs_access *access);
int access_identify(struct iofs_access *access, uint64_t iova, struct page_id *out); /* ENOENT */

/* iopt_unmap.c: unmap, or all with length 2^64 - 1 from 0 on, as iofs_iopt_unmap(), but EAGAIN
 * with nothing done if there are accesses, which might have to be told. */
int iopt_unmap_untold(struct iofs_iopt *iopt, uint64_t iova, uint64_t length, uint64_t *unmapped);

/* iopt_map.c: an area that shows these pages, with a reference on them; NULL: no memory. */
struct area *area_new(struct pages *pages);
void area_free(struct area *area);

/* iopt_unmap.c: the area leaves the iopt and the domains and is freed. */
void iopt_remove_area(struct iofs_iopt *iopt, struct area *area);
/* All of them, in much less time than one after the other; their bytes. */
uint64_t iopt_remove_all(struct iofs_iopt *iopt);

#endif
