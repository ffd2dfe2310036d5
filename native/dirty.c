/* Dirty tracking of domains: the bits are in the leaves of the page table (see iommufs.h). */
#include "domain.h"

int iofs_domain_tracks_dirty(const struct iofs_domain *domain) { return domain->tracks_dirty; }

size_t iofs_domain_mark_dirty(struct iofs_domain *domain, uint64_t iova, uint64_t page_size,
                              const uint8_t *bitmap, size_t n_bits) {
  size_t n = 0;
  pthread_rwlock_rdlock(&domain->lock);
  for (size_t i = 0; i < n_bits; i++) {
    uint64_t at;
    if (!(bitmap[i / 8] >> i % 8 & 1))
      continue;
    n++;
    if (!__builtin_add_overflow(iova, i * page_size, &at) && at <= domain->aperture_last)
      pt_set_dirty(&domain->pt, at);
  }
  pthread_rwlock_unlock(&domain->lock);
  return n;
}

/* Add [start, last] to the ranges; 0: there is no room. */
static int add(struct iofs_range *out, size_t n, size_t *found, uint64_t start, uint64_t last) {
  if (*found && out[*found - 1].last + 1 == start) {
    out[*found - 1].last = last;
    return 1;
  }
  if (*found == n)
    return 0;
  out[(*found)++] = (struct iofs_range){start, last};
  return 1;
}

size_t iofs_domain_read_dirty(struct iofs_domain *domain, uint64_t *iova, uint64_t last, int clear,
                              struct iofs_range *out, size_t n) {
  struct pt_leaf leaf;
  uint64_t at = *iova, end;
  size_t found = 0;
  *iova = 0;
  pthread_rwlock_wrlock(&domain->lock);
  while (at <= domain->aperture_last && pt_find(&domain->pt, at, &leaf)) {
    end = last - at < leaf.length - 1 ? last : at + leaf.length - 1;
    if (pt_read_dirty(&domain->pt, at, 0)) {
      if (!add(out, n, &found, at, end)) {
        *iova = at;
        break;
      }
      if (clear)
        pt_read_dirty(&domain->pt, at, 1);
    }
    if (end == last)
      break;
    at = end + 1;
  }
  pthread_rwlock_unlock(&domain->lock);
  return found;
}

void iofs_domain_set_dirty_tracking(struct iofs_domain *domain, int enabled) {
  pthread_rwlock_wrlock(&domain->lock);
  if (enabled)
    pt_clean(&domain->pt);
  domain->tracks_dirty = !!enabled;
  pthread_rwlock_unlock(&domain->lock);
}
