/* Domains: the page table of one HWPT. Shared by domain.c and dma.c. */
#ifndef IOFS_DOMAIN_H
#define IOFS_DOMAIN_H

#include <pthread.h>

#include "iommufs.h"
#include "pt.h"

struct iofs_domain {
  _Atomic uint32_t refs;
  /* Of the table. A translation holds it, shared, until it has references on the memory behind:
   * what a leaf shows is pinned as long as the leaf is there. */
  pthread_rwlock_t lock;
  struct pt pt;
  uint64_t aperture_start, aperture_last;
  _Atomic int tracks_dirty;
  struct iofs_iopt *iopt; /* where it is a member; under the lock of that */
};

#endif
