/* What the kernel's own tests ask about pages (see iommufs.h): which they are, who pins them. */
#include <errno.h>

#include "domain.h"
#include "iopt.h"

/* The page that a client has at an address. */
static int identify(struct iofs_mm *mm, uint64_t address, struct page_id *out) {
  static const struct iofs_charge nobody = {IOFS_CHARGE_NONE, 0, 0};
  struct pages *pages;
  int err = pages_new_user(mm, &nobody, address & ~(PAGE_SIZE - 1), PAGE_SIZE, 0, &pages);
  if (err)
    return err;
  err = pages_identify(pages, 0, out);
  pages_put(pages);
  return err;
}

static int same(const struct page_id *a, const struct page_id *b) {
  return a->dev == b->dev && a->ino == b->ino && a->at == b->at;
}

/* The page behind an IOVA, and the place in it. */
static int identify_iova(struct iofs_domain *domain, uint64_t iova, struct page_id *out,
                         uint64_t *offset) {
  struct pt_leaf leaf;
  uint64_t byte, length;
  int err = -EINVAL;
  pthread_rwlock_rdlock(&domain->lock);
  if (iova <= domain->aperture_last && pt_find(&domain->pt, iova, &leaf)) {
    struct pages *pages = pages_at_phys(leaf.phys, &byte, &length);
    if (pages && !(err = pages_identify(pages, byte, out)))
      *offset = byte % PAGE_SIZE;
  }
  pthread_rwlock_unlock(&domain->lock);
  return err;
}

int iofs_domain_check_map(struct iofs_domain *domain, uint64_t iova, uint64_t length,
                          struct iofs_mm *mm, uint64_t address) {
  uint64_t page_size = 1ull << domain->pt.page_lg2, offset;
  for (uint64_t done = 0; done < length; done += page_size) {
    struct page_id expected, found;
    int err = identify(mm, address + done, &expected);
    if (!err)
      err = identify_iova(domain, iova + done, &found, &offset);
    if (err)
      return err;
    if (!same(&expected, &found) || offset != (address + done) % PAGE_SIZE)
      return -EINVAL;
  }
  return 0;
}

int iofs_access_check_map(struct iofs_access *access, uint64_t iova, uint64_t length,
                          struct iofs_mm *mm, uint64_t address) {
  uint64_t end = iova + length;
  for (uint64_t at = iova; at < end; at = (at | (PAGE_SIZE - 1)) + 1) {
    struct page_id expected, found;
    int err = identify(mm, address + (at - iova), &expected);
    if (!err)
      err = access_identify(access, at, &found);
    if (err)
      return err;
    if (!same(&expected, &found))
      return -EBADE;
  }
  return 0;
}

int iofs_check_pins(struct iofs_mm *mm, uint64_t address, uint64_t length, uint64_t n) {
  for (uint64_t done = 0; done < length; done += PAGE_SIZE) {
    struct page_id id;
    int err = identify(mm, address + done, &id);
    if (err)
      return err;
    if (!id.huge && pages_count_pinners(&id) != n)
      return -EIO;
  }
  return 0;
}
