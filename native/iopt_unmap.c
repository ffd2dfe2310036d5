/* Unmapping, and the cut that only VFIO type1 version 1 makes. */
#include <errno.h>

#include "alloc.h"
#include "iopt.h"
#include "stats.h"

/* After so many rounds without the pins of an area going away, whoever holds them is stuck. */
#define MAX_TRIES 100

void iopt_remove_area(struct iofs_iopt *iopt, struct area *area) {
  iopt_unfill_area(iopt, area);
  btree_erase(&iopt->areas, &area->iova);
  area_free(area);
  iopt->n_areas--;
  stats.areas--;
}

struct all {
  struct iofs_iopt *iopt;
  uint64_t n_bytes;
};

static void forget(struct interval *iova, void *arg) {
  struct all *all = arg;
  all->n_bytes += area_length(area_of(iova));
  iopt_unfill_area(all->iopt, area_of(iova));
  area_free(area_of(iova));
}

uint64_t iopt_remove_all(struct iofs_iopt *iopt) {
  struct all all = {iopt, 0};
  btree_clear(&iopt->areas, forget, &all);
  stats.areas -= iopt->n_areas;
  iopt->n_areas = 0;
  return all.n_bytes;
}

/* Tell the accesses of an area that it is to go; 1, or -EDEADLK. */
static int notify(struct iofs_iopt *iopt, struct area *area, struct iofs_range *out) {
  if (!area->prevent_access || iopt->waiting_area != area->iova.start) {
    iopt->waiting_area = area->iova.start;
    iopt->n_tries = 0;
  }
  area->prevent_access = 1;
  if (iopt->n_tries++ >= MAX_TRIES) {
    iopt->n_tries = 0; /* the next unmap tells them again */
    return -EDEADLK;
  }
  *out = (struct iofs_range){area->iova.start, area->iova.last};
  return 1;
}

/* iopt_unmap_iova_range() */
static int unmap(struct iofs_iopt *iopt, uint64_t start, uint64_t last, uint64_t *unmapped,
                 struct iofs_range *out) {
  struct area *area;
  if (!start && last == UINT64_MAX && !iopt->accesses) { /* who else could hold on to an area? */
    *unmapped += iopt_remove_all(iopt);
    return 0;
  }
  while ((area = seek_area(iopt, start, last))) {
    if (area->n_locks)
      return -EBUSY;
    if (area->iova.start < start || area->iova.last > last)
      return -ENOENT;
    if (area->n_accesses)
      return notify(iopt, area, out);
    *unmapped += area_length(area);
    start = area->iova.last;
    iopt_remove_area(iopt, area);
    if (start++ == last)
      break;
  }
  return 0;
}

int iofs_iopt_unmap(struct iofs_iopt *iopt, uint64_t iova, uint64_t length, uint64_t *unmapped,
                    struct iofs_range *out) {
  uint64_t last;
  if (!length)
    return -EINVAL;
  if (__builtin_add_overflow(iova, length - 1, &last))
    return -EOVERFLOW;
  pthread_mutex_lock(&iopt->lock);
  int err = unmap(iopt, iova, last, unmapped, out);
  pthread_mutex_unlock(&iopt->lock);
  return err;
}

int iofs_iopt_unmap_all(struct iofs_iopt *iopt, uint64_t *unmapped, struct iofs_range *out) {
  pthread_mutex_lock(&iopt->lock);
  int err = unmap(iopt, 0, UINT64_MAX, unmapped, out);
  pthread_mutex_unlock(&iopt->lock);
  return err;
}

int iopt_unmap_untold(struct iofs_iopt *iopt, uint64_t iova, uint64_t length, uint64_t *unmapped) {
  struct iofs_range nobody;
  uint64_t last = UINT64_MAX;
  int everything = !iova && length == UINT64_MAX;
  if (!everything && (!length || __builtin_add_overflow(iova, length - 1, &last)))
    return -EINVAL;
  pthread_mutex_lock(&iopt->lock);
  int err = iopt->accesses ? -EAGAIN : unmap(iopt, iova, last, unmapped, &nobody);
  pthread_mutex_unlock(&iopt->lock);
  return err;
}

/* iopt_area_split(), with its order of checks. */
static int check_cut(const struct iofs_iopt *iopt, const struct area *area, uint64_t new_start) {
  if (area->prevent_access)
    return -EBUSY;
  if ((new_start | area_byte(area, new_start)) & (iopt->alignment - 1))
    return -EINVAL;
  if (area->n_accesses)
    return -EINVAL;
  return iopt->n_domains && !iopt->no_huge_pages ? -EINVAL : 0;
}

static int cut(struct iofs_iopt *iopt, struct area *left, uint64_t new_start) {
  struct area *right;
  int err = check_cut(iopt, left, new_start);
  if (err)
    return err;
  if (!(right = area_new(left->pages)))
    return -ENOMEM;
  *right = *left; /* what the domains hold stays as it is: there are only small leaves */
  right->start_byte = area_byte(left, new_start);
  right->iova.start = new_start;
  btree_set_last(&iopt->areas, &left->iova, new_start - 1);
  if (!(err = btree_insert(&iopt->areas, &right->iova)) && left->filled &&
      (err = pages_divide(left->pages, right->start_byte >> PAGE_LG2)))
    btree_erase(&iopt->areas, &right->iova);
  if (err) {
    btree_set_last(&iopt->areas, &left->iova, right->iova.last);
    area_free(right);
    return err;
  }
  if (right->filled)
    pages_place(right->pages, 0, 0); /* placed already by the left one: cannot fail */
  iopt->n_areas++;
  stats.areas++;
  return 0;
}

int iofs_iopt_cut(struct iofs_iopt *iopt, uint64_t iova) {
  int err = 0;
  pthread_mutex_lock(&iopt->lock);
  struct area *area = find_area(iopt, iova, iova);
  if (area && iova != area->iova.start && iova != area->iova.last)
    err = cut(iopt, area, iova + 1);
  pthread_mutex_unlock(&iopt->lock);
  return err;
}
