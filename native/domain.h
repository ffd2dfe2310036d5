/* Domains: the page table of one HWPT. Shared by domain.c and dma.c. */
#ifndef IOFS_DOMAIN_H
#define IOFS_DOMAIN_H

#include <pthread.h>

#include "flight.h"
#include "iommufs.h"
#include "pt.h"

struct iofs_domain {
  _Atomic uint32_t refs;
  uint64_t serial; /* never another domain's */
  /* Of the table. A translation holds it, shared, until the bytes are moved or it has references
   * on the memory behind: what a leaf shows is pinned as long as the leaf is there. */
  pthread_rwlock_t lock;
  struct pt pt;
  uint64_t generation; /* what was translated in an earlier one may not hold any more */
  /* DMA that goes on without the lock, by the phase in which it began; each unmap begins the other
   * one and waits for the first. */
  struct flights flights[2];
  unsigned phase;
  uint64_t aperture_start, aperture_last;
  _Atomic int tracks_dirty;
  struct iofs_iopt *iopt; /* where it is a member; under the lock of that */
};

#endif
