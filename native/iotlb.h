/*
 * The IOTLB: where a domain's IOVAs were found to lie, so that most DMA needs no walk. Each thread
 * has its own, for all domains; an entry counts while the domain's generation is the one it was made
 * in, and owns nothing. All of it under the domain's lock, shared at least, which also keeps alive
 * what an entry names.
 */
#ifndef IOFS_IOTLB_H
#define IOFS_IOTLB_H

#include "copy.h"
#include "domain.h"

struct translation {
  uint64_t start, last; /* IOVAs, one run of memory behind them */
  struct copy_run run;  /* of start; length unused */
  uint32_t prot;        /* enum iofs_prot */
};

/* What the IOTLB knows of iova, until the next call of this thread; NULL: nothing. */
const struct translation *iotlb_find(const struct iofs_domain *domain, uint64_t iova);

/* Walk the table for [iova, iova + length) and remember the run of memory that it begins with,
 * from the beginning of its page on. NULL: nothing is mapped there. */
const struct translation *iotlb_fill(const struct iofs_domain *domain, uint64_t iova,
                                     uint64_t length);

#endif
