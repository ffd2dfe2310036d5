/* The life of an iopt, its alignment and its option of huge pages. */
#include "iopt.h"

#include <assert.h>
#include <errno.h>

#include "alloc.h"
#include "stats.h"

/* To let go of more areas than that takes milliseconds, which whoever drops an iopt does not have. */
#define MANY 20000

struct iofs_iopt *iofs_iopt_new(void) {
  struct iofs_iopt *iopt = alloc_zeroed(sizeof *iopt);
  if (!iopt)
    return NULL;
  pthread_mutex_init(&iopt->lock, NULL);
  iopt->reserved.kind = iopt->allowed.kind = ITREE_OVERLAP;
  iopt->alignment = 1;
  iopt->refs = 1;
  stats.iopts++;
  return iopt;
}

void iopt_get(struct iofs_iopt *iopt) { iopt->refs++; }

static void *destroy(void *arg) {
  struct iofs_iopt *iopt = arg;
  iopt_remove_all(iopt);
  iopt_free_ranges(&iopt->reserved);
  iopt_free_ranges(&iopt->allowed);
  alloc_free(iopt->domains);
  pthread_mutex_destroy(&iopt->lock);
  alloc_free(iopt);
  stats.iopts--;
  return NULL;
}

/* Without a domain or an access nothing is pinned, and nobody can tell when the areas go. */
void iopt_put(struct iofs_iopt *iopt) {
  pthread_t thread;
  if (--iopt->refs)
    return;
  if (iopt->n_areas > MANY && !pthread_create(&thread, NULL, destroy, iopt))
    pthread_detach(thread);
  else
    destroy(iopt);
}

void iofs_iopt_free(struct iofs_iopt *iopt) {
  assert(!iopt->n_domains && !iopt->accesses);
  iopt_put(iopt);
}

int iopt_check_alignment(const struct iofs_iopt *iopt, uint64_t alignment) {
  uint64_t mask = alignment - 1;
  if (alignment <= iopt->alignment)
    return 0;
  for (const struct area *area = first_area(iopt); area; area = next_area(iopt, area))
    if ((area->iova.start | area_length(area) | area->start_byte % PAGE_SIZE) & mask)
      return -EADDRINUSE;
  return 0;
}

void iopt_update_alignment(struct iofs_iopt *iopt) {
  uint64_t alignment = iopt->no_huge_pages ? PAGE_SIZE : 1, other;
  const struct iofs_access *access;
  for (size_t i = 0; i < iopt->n_domains; i++)
    if ((other = domain_alignment(iopt->domains[i])) > alignment)
      alignment = other;
  for (access = iopt->accesses; access; access = access_next(access))
    if ((other = access_alignment(access)) > alignment)
      alignment = other;
  iopt->alignment = alignment;
}

uint64_t iofs_iopt_alignment(struct iofs_iopt *iopt) {
  pthread_mutex_lock(&iopt->lock);
  uint64_t alignment = iopt->alignment;
  pthread_mutex_unlock(&iopt->lock);
  return alignment;
}

int iofs_iopt_huge_pages(struct iofs_iopt *iopt) {
  pthread_mutex_lock(&iopt->lock);
  int enabled = !iopt->no_huge_pages;
  pthread_mutex_unlock(&iopt->lock);
  return enabled;
}

/* iopt_disable_large_pages() */
static int disable_huge_pages(struct iofs_iopt *iopt) {
  if (iopt->no_huge_pages)
    return 0;
  if (iopt->n_domains && iopt->areas.root)
    return -EINVAL;
  int err = iopt_check_alignment(iopt, PAGE_SIZE);
  if (err)
    return err;
  iopt->no_huge_pages = 1;
  return 0;
}

int iofs_iopt_set_huge_pages(struct iofs_iopt *iopt, int enabled) {
  int err = 0;
  pthread_mutex_lock(&iopt->lock);
  if (enabled)
    iopt->no_huge_pages = 0;
  else
    err = disable_huge_pages(iopt);
  iopt_update_alignment(iopt);
  pthread_mutex_unlock(&iopt->lock);
  return err;
}

size_t iofs_iopt_n_areas(struct iofs_iopt *iopt) {
  pthread_mutex_lock(&iopt->lock);
  size_t n = iopt->n_areas;
  pthread_mutex_unlock(&iopt->lock);
  return n;
}

int iofs_iopt_nth_area(struct iofs_iopt *iopt, size_t n, struct iofs_range *out) {
  pthread_mutex_lock(&iopt->lock);
  const struct area *area = first_area(iopt);
  while (area && n--)
    area = next_area(iopt, area);
  if (area)
    *out = (struct iofs_range){area->iova.start, area->iova.last};
  pthread_mutex_unlock(&iopt->lock);
  return !!area;
}
