/* iofs_statistics(): one snapshot of every counter; each by itself is exact. */
#include "stats.h"

#include "iommufs.h"
#include "job.h"
#include "transport.h"

struct stats stats;

void iofs_statistics(struct iofs_stats *out) {
  *out = (struct iofs_stats){
      .mms = stats.mms,
      .users = stats.users,
      .iopts = stats.iopts,
      .areas = stats.areas,
      .pages = stats.pages,
      .pinned_pages = stats.pinned_pages,
      .domains = stats.domains,
      .table_bytes = stats.table_bytes,
      .accesses = stats.accesses,
      .source_maps = stats.source_maps,
      .jobs = iofs_live_jobs,
      .requests = iofs_live_requests,
  };
}
