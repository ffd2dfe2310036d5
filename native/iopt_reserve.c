/* Reserved and allowed ranges of an iopt, and the holes that are left. */
#include <errno.h>

#include "alloc.h"
#include "iopt.h"

struct range {
  struct itree_node node;
  iofs_owner owner;
};

static struct range *range_of(struct itree_node *node) {
  return ITREE_OF(node, struct range, node);
}

static int add_range(struct itree *tree, uint64_t start, uint64_t last, iofs_owner owner) {
  struct range *range = alloc_zeroed(sizeof *range);
  if (!range)
    return -ENOMEM;
  range->node.start = start;
  range->node.last = last;
  range->owner = owner;
  itree_insert(tree, &range->node);
  return 0;
}

void iopt_free_ranges(struct itree *tree) {
  struct itree_node *node;
  while ((node = tree->root)) {
    itree_erase(tree, node);
    alloc_free(range_of(node));
  }
}

int iopt_reserve(struct iofs_iopt *iopt, uint64_t start, uint64_t last, iofs_owner owner) {
  if (start > last)
    return -EINVAL;
  if (find_area(iopt, start, last) || itree_find(&iopt->allowed, start, last))
    return -EADDRINUSE;
  return add_range(&iopt->reserved, start, last, owner);
}

void iopt_unreserve(struct iofs_iopt *iopt, iofs_owner owner) {
  struct itree_node *node = itree_first(&iopt->reserved), *next;
  for (; node; node = next) {
    next = itree_next(node);
    if (range_of(node)->owner != owner)
      continue;
    itree_erase(&iopt->reserved, node);
    alloc_free(range_of(node));
  }
}

int iofs_iopt_reserve(struct iofs_iopt *iopt, uint64_t start, uint64_t last, iofs_owner owner) {
  pthread_mutex_lock(&iopt->lock);
  int err = iopt_reserve(iopt, start, last, owner);
  pthread_mutex_unlock(&iopt->lock);
  return err;
}

void iofs_iopt_remove_reserved(struct iofs_iopt *iopt, iofs_owner owner) {
  pthread_mutex_lock(&iopt->lock);
  iopt_unreserve(iopt, owner);
  pthread_mutex_unlock(&iopt->lock);
}

size_t iofs_iopt_holes(struct iofs_iopt *iopt, struct iofs_range *out, size_t n) {
  size_t found = 0;
  uint64_t start = 0;
  int full = 0; /* a range reaches the end of the space */
  pthread_mutex_lock(&iopt->lock);
  struct itree_node *node = itree_first(&iopt->reserved);
  for (; node && !full; node = itree_next(node)) {
    if (node->start > start) {
      if (found < n)
        out[found] = (struct iofs_range){start, node->start - 1};
      found++;
    }
    if (node->last >= start)
      start = node->last + 1;
    full = node->last == UINT64_MAX;
  }
  pthread_mutex_unlock(&iopt->lock);
  if (full)
    return found;
  if (found < n)
    out[found] = (struct iofs_range){start, UINT64_MAX};
  return found + 1;
}

/* iommufd_ioas_load_iovas() and iopt_set_allow_iova(): all errors of the list itself come before
 * the first reserved range is looked at. */
static int load(struct itree *allowed, const struct iofs_range *ranges, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (ranges[i].start >= ranges[i].last ||
        itree_find(allowed, ranges[i].start, ranges[i].last))
      return -EINVAL;
    int err = add_range(allowed, ranges[i].start, ranges[i].last, 0);
    if (err)
      return err;
  }
  return 0;
}

static int meets_reserved(const struct iofs_iopt *iopt, const struct itree *allowed) {
  struct itree_node *node = itree_first(allowed);
  for (; node; node = itree_next(node))
    if (itree_find(&iopt->reserved, node->start, node->last))
      return 1;
  return 0;
}

int iofs_iopt_set_allowed(struct iofs_iopt *iopt, const struct iofs_range *ranges, size_t n) {
  struct itree allowed = {NULL, ITREE_OVERLAP};
  int err = load(&allowed, ranges, n);
  if (!err) {
    pthread_mutex_lock(&iopt->lock);
    if (meets_reserved(iopt, &allowed))
      err = -EADDRINUSE;
    else {
      struct itree old = iopt->allowed;
      iopt->allowed = allowed;
      allowed = old;
    }
    pthread_mutex_unlock(&iopt->lock);
  }
  iopt_free_ranges(&allowed);
  return err;
}
