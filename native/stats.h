/* Counters of what lives, for iofs_statistics(). */
#ifndef IOFS_STATS_H
#define IOFS_STATS_H

#include <stdatomic.h>
#include <stdint.h>

struct stats {
  _Atomic uint64_t mms, users, iopts, areas, pages, pinned_pages, domains, table_bytes, accesses,
      source_maps;
};

extern struct stats stats;

#endif
