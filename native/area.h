/* Areas: what an IOVA range of an iopt shows. All of it is under the lock of the iopt. */
#ifndef IOFS_AREA_H
#define IOFS_AREA_H

#include "btree.h"

struct pages;

struct area {
  struct interval iova;
  struct pages *pages; /* NULL: no area is here, see struct pages */
  uint64_t start_byte; /* in pages, of iova.start */
  uint32_t prot : 2;           /* enum iofs_prot */
  uint32_t filled : 1;         /* it is in the domains, its pages are pinned for that */
  uint32_t prevent_access : 1; /* being unmapped: no new pins */
  uint32_t n_locks : 28;       /* pins of internal accesses, which forbid to unmap it */
  uint32_t n_accesses;         /* pins of all accesses */
};

#endif
