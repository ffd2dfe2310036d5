/* The IOTLB and its page walks (see iotlb.h). */
#include "iotlb.h"

#include "pages.h"

#define N_ENTRIES 256

struct entry {
  uint64_t domain, generation; /* 0: empty */
  struct translation found;
};

static _Thread_local struct entry entries[N_ENTRIES];

/* Pages that follow each other have each an entry, and so have buffers at any distance that is a
 * power of two; those at other distances of a few pages nearly. */
static struct entry *entry_of(const struct iofs_domain *domain, uint64_t iova) {
  uint64_t page = iova >> PAGE_LG2;
  uint64_t above = (page >> 8) + (page >> 16) + (page >> 24);
  return &entries[(page + 5 * above + domain->serial * 61) % N_ENTRIES];
}

const struct translation *iotlb_find(const struct iofs_domain *domain, uint64_t iova) {
  const struct entry *entry = entry_of(domain, iova);
  return entry->domain == domain->serial && entry->generation == domain->generation &&
                 iova - entry->found.start <= entry->found.last - entry->found.start
             ? &entry->found
             : NULL;
}

/* How much of [iova, iova + length) one physical run covers, from the leaf at iova on; all of the
 * leaf even if that is more. */
static uint64_t extend(const struct pt *pt, uint64_t iova, uint64_t length,
                       const struct pt_leaf *leaf) {
  uint64_t run = leaf->length;
  struct pt_leaf next;
  while (run < length && pt_find(pt, iova + run, &next) && next.phys == leaf->phys + run &&
         next.prot == leaf->prot)
    run += next.length;
  return run;
}

const struct translation *iotlb_fill(const struct iofs_domain *domain, uint64_t iova,
                                     uint64_t length) {
  struct entry *entry = entry_of(domain, iova);
  struct pt_leaf leaf;
  uint64_t in_page = iova % PAGE_SIZE, start = iova - in_page, byte, part;
  entry->domain = 0;
  if (!pt_find(&domain->pt, start, &leaf))
    return NULL;
  uint64_t run = extend(&domain->pt, start, in_page + length, &leaf);
  /* A run of physical addresses may belong to several pages objects. */
  struct pages *pages = pages_at_phys(leaf.phys, &byte, &part);
  if (!pages)
    return NULL;
  entry->found.run.length = part < run ? part : run;
  pages_locate(pages, byte, &entry->found.run);
  entry->found.start = start;
  entry->found.last = start + entry->found.run.length - 1;
  entry->found.prot = leaf.prot;
  entry->domain = domain->serial;
  entry->generation = domain->generation;
  return &entry->found;
}
