/* Domains and how they are filled with the areas of an iopt. */
#define _GNU_SOURCE
#include "domain.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "alloc.h"
#include "iopt.h"
#include "stats.h"

static _Atomic uint64_t last_serial;

static const struct pt_format *const formats[] = {
    [IOFS_PT_VTD] = &pt_vtd,
    [IOFS_PT_AMD] = &pt_amd,
    [IOFS_PT_MOCK] = &pt_mock,
};

int iofs_domain_new(const struct iofs_domain_config *config, struct iofs_domain **out) {
  struct iofs_domain *domain;
  if (config->aperture_start > config->aperture_last ||
      config->format >= sizeof formats / sizeof *formats)
    return -EINVAL;
  if (!(domain = alloc_zeroed(sizeof *domain)))
    return -ENOMEM;
  int err = pt_init(&domain->pt, formats[config->format], config->pgsize_bitmap,
                    config->aperture_last);
  if (err) {
    alloc_free(domain);
    return err;
  }
  domain->refs = 1;
  domain->serial = ++last_serial;
  domain->aperture_start = config->aperture_start;
  domain->aperture_last = config->aperture_last;
  /* Devices that never stop must not keep an unmap waiting. */
  pthread_rwlockattr_t attr;
  pthread_rwlockattr_init(&attr);
  pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  pthread_rwlock_init(&domain->lock, &attr);
  pthread_rwlockattr_destroy(&attr);
  stats.domains++;
  *out = domain;
  return 0;
}

void iofs_domain_get(struct iofs_domain *domain) { domain->refs++; }

void iofs_domain_put(struct iofs_domain *domain) {
  if (--domain->refs)
    return;
  assert(!domain->iopt);
  pt_destroy(&domain->pt);
  pthread_rwlock_destroy(&domain->lock);
  alloc_free(domain);
  stats.domains--;
}

uint64_t domain_alignment(const struct iofs_domain *domain) {
  return 1ull << domain->pt.page_lg2;
}

static iofs_owner owner_of(const struct iofs_domain *domain) { return (uintptr_t)domain; }

/* ---- one area, one domain -------------------------------------------------------------------- */

static int map(const struct iofs_iopt *iopt, struct iofs_domain *domain, const struct area *area) {
  uint64_t sizes = domain->pt.sizes;
  if (!area->prot) /* possible through VFIO type1, until there is a domain (oracle) */
    return -EINVAL;
  if (iopt->no_huge_pages)
    sizes &= 2 * PAGE_SIZE - 1;
  if (area->pages->revoked)
    return 0;
  pthread_rwlock_wrlock(&domain->lock);
  int err = pt_map(&domain->pt, area->iova.start, pages_phys(area->pages, area->start_byte),
                   area_length(area), area->prot, sizes);
  pthread_rwlock_unlock(&domain->lock);
  return err;
}

/* A device that was in the middle of it has done by the time the client learns that the range is
 * unmapped. */
static void unmap(struct iofs_domain *domain, const struct area *area) {
  pthread_rwlock_wrlock(&domain->lock);
  pt_unmap(&domain->pt, area->iova.start, area_length(area));
  domain->generation++;
  unsigned phase = domain->phase;
  domain->phase ^= 1;
  pthread_rwlock_unlock(&domain->lock);
  flights_wait(&domain->flights[phase]);
}

/* Pin and place what an area shows. */
static int hold(struct area *area) {
  int err = pages_pin(area->pages, area_first_index(area), area_last_index(area));
  if (err)
    return err;
  if ((err = pages_place(area->pages, area->start_byte, area->iova.start))) {
    pages_unpin(area->pages, area_first_index(area), area_last_index(area));
    return err;
  }
  area->filled = 1;
  return 0;
}

static void release(struct area *area) {
  pages_unplace(area->pages);
  pages_unpin(area->pages, area_first_index(area), area_last_index(area));
  area->filled = 0;
}

/* ---- one area, all domains ------------------------------------------------------------------- */

int iopt_fill_area(struct iofs_iopt *iopt, struct area *area) {
  size_t i = 0;
  int err = 0;
  if (!iopt->n_domains)
    return 0;
  if ((err = hold(area)))
    return err;
  while (i < iopt->n_domains && !(err = map(iopt, iopt->domains[i], area)))
    i++;
  if (!err)
    return 0;
  while (i--)
    unmap(iopt->domains[i], area);
  release(area);
  return err;
}

void iopt_unfill_area(struct iofs_iopt *iopt, struct area *area) {
  if (!area->filled)
    return;
  for (size_t i = 0; i < iopt->n_domains; i++)
    unmap(iopt->domains[i], area);
  release(area);
}

void iofs_iopt_revoke(struct iofs_iopt *iopt, uint64_t name) {
  pthread_mutex_lock(&iopt->lock);
  for (struct area *area = first_area(iopt); area; area = next_area(iopt, area)) {
    if (area->pages->kind != PAGES_DMABUF || area->pages->dmabuf != name)
      continue;
    area->pages->revoked = 1;
    for (size_t i = 0; i < iopt->n_domains; i++)
      unmap(iopt->domains[i], area);
  }
  pthread_mutex_unlock(&iopt->lock);
}

/* ---- all areas, one domain ------------------------------------------------------------------- */

/* Take the areas below `end` (NULL: all) out of the domain; they are released if it is the only
 * one that holds them. */
static void unfill(const struct iofs_iopt *iopt, struct iofs_domain *domain,
                   const struct area *end, int only) {
  for (struct area *area = first_area(iopt); area != end; area = next_area(iopt, area)) {
    unmap(domain, area);
    if (only)
      release(area);
  }
}

/* iopt_fill_domain() */
static int fill(struct iofs_iopt *iopt, struct iofs_domain *domain) {
  int only = !iopt->n_domains, err = 0;
  struct area *area = first_area(iopt);
  for (; area; area = next_area(iopt, area)) {
    if (only && (err = hold(area)))
      break;
    if ((err = map(iopt, domain, area))) {
      if (only)
        release(area);
      break;
    }
  }
  if (err)
    unfill(iopt, domain, area, only);
  return err;
}

/* Under the lock of the iopt; the iopt has room for one more domain. */
static int add_domain(struct iofs_iopt *iopt, struct iofs_domain *domain) {
  int err;
  if (domain_alignment(domain) > PAGE_SIZE)
    return -EINVAL;
  if ((err = iopt_check_alignment(iopt, domain_alignment(domain))))
    return err;
  if (domain->aperture_start)
    err = iopt_reserve(iopt, 0, domain->aperture_start - 1, owner_of(domain));
  if (!err && domain->aperture_last != UINT64_MAX)
    err = iopt_reserve(iopt, domain->aperture_last + 1, UINT64_MAX, owner_of(domain));
  if (!err)
    err = fill(iopt, domain);
  if (err) {
    iopt_unreserve(iopt, owner_of(domain));
    return err;
  }
  iopt->domains[iopt->n_domains++] = domain;
  domain->iopt = iopt;
  iofs_domain_get(domain);
  iopt_update_alignment(iopt);
  return 0;
}

static int need_room(struct iofs_iopt *iopt) {
  struct iofs_domain **more = alloc_array(iopt->n_domains + 1, sizeof *more);
  if (!more)
    return -ENOMEM;
  if (iopt->n_domains)
    memcpy(more, iopt->domains, iopt->n_domains * sizeof *more);
  alloc_free(iopt->domains);
  iopt->domains = more;
  return 0;
}

int iofs_iopt_add_domain(struct iofs_iopt *iopt, struct iofs_domain *domain) {
  pthread_mutex_lock(&iopt->lock);
  int err = domain->iopt ? -EINVAL : need_room(iopt);
  if (!err)
    err = add_domain(iopt, domain);
  pthread_mutex_unlock(&iopt->lock);
  return err;
}

void iofs_iopt_remove_domain(struct iofs_iopt *iopt, struct iofs_domain *domain) {
  pthread_mutex_lock(&iopt->lock);
  size_t i = 0;
  while (i < iopt->n_domains && iopt->domains[i] != domain)
    i++;
  assert(i < iopt->n_domains);
  unfill(iopt, domain, NULL, iopt->n_domains == 1);
  iopt->domains[i] = iopt->domains[--iopt->n_domains]; /* dense, as the kernel keeps them */
  domain->iopt = NULL;
  iopt_unreserve(iopt, owner_of(domain));
  iopt_update_alignment(iopt);
  pthread_mutex_unlock(&iopt->lock);
  iofs_domain_put(domain);
}
