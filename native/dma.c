/*
 * What a device does through a domain: the whole span is translated first, under the lock of the
 * page table, then copied without any lock, from memory that is held meanwhile.
 */
#include <errno.h>

#include "copy.h"
#include "domain.h"
#include "pages.h"

static int refuse(struct iofs_dma_fault *fault, uint64_t iova, int write,
                  enum iofs_dma_reason reason) {
  *fault = (struct iofs_dma_fault){iova, (uint32_t)!!write, reason};
  return -EFAULT;
}

/* How much of [iova, iova + length) one physical run covers, from the leaf at iova on. */
static uint64_t extend(const struct pt *pt, uint64_t iova, uint64_t length,
                       const struct pt_leaf *leaf) {
  uint64_t run = leaf->length;
  struct pt_leaf next;
  while (run < length && pt_find(pt, iova + run, &next) && next.phys == leaf->phys + run &&
         next.prot == leaf->prot)
    run += next.length;
  return run < length ? run : length;
}

/* Append the memory behind a physical run, which may belong to several pages objects. */
static int collect(uint64_t phys, uint64_t length, struct copy_list *list) {
  while (length) {
    uint64_t byte, part;
    struct pages *pages = pages_at_phys(phys, &byte, &part);
    if (!pages)
      return -EFAULT;
    if (part > length)
      part = length;
    int err = pages_collect(pages, byte, part, list);
    if (err)
      return err;
    phys += part;
    length -= part;
  }
  return 0;
}

static void mark_written(struct pt *pt, uint64_t iova, uint64_t length) {
  struct pt_leaf leaf;
  for (; length; iova += leaf.length) {
    pt_find(pt, iova, &leaf);
    pt_set_dirty(pt, iova);
    if (leaf.length > length)
      leaf.length = length;
    length -= leaf.length;
  }
}

static int translate(const struct iofs_domain *domain, uint64_t iova, uint64_t length, int write,
                     struct copy_list *list, struct iofs_dma_fault *fault) {
  uint32_t want = write ? IOFS_WRITE : IOFS_READ;
  while (length) {
    struct pt_leaf leaf;
    if (iova > domain->aperture_last || !pt_find(&domain->pt, iova, &leaf))
      return refuse(fault, iova, write, IOFS_DMA_UNMAPPED);
    if (!(leaf.prot & want))
      return refuse(fault, iova, write, IOFS_DMA_PERMISSION);
    uint64_t run = extend(&domain->pt, iova, length, &leaf);
    int err = collect(leaf.phys, run, list);
    if (err == -EFAULT)
      return refuse(fault, iova, write, IOFS_DMA_GONE);
    if (err)
      return err;
    iova += run;
    length -= run;
  }
  return 0;
}

static int move(struct iofs_domain *domain, uint64_t iova, void *buf, size_t length, int write,
                struct iofs_dma_fault *fault) {
  struct copy_list list;
  uint64_t done, last;
  *fault = (struct iofs_dma_fault){0};
  if (length && __builtin_add_overflow(iova, length - 1, &last))
    return refuse(fault, iova, write, IOFS_DMA_UNMAPPED);
  copy_list_init(&list);
  pthread_rwlock_rdlock(&domain->lock);
  int err = translate(domain, iova, length, write, &list, fault);
  if (!err && write && domain->tracks_dirty)
    mark_written(&domain->pt, iova, length);
  pthread_rwlock_unlock(&domain->lock);
  if (!err && copy_list_move(&list, buf, write, &done))
    err = refuse(fault, iova + done, write, IOFS_DMA_GONE);
  copy_list_free(&list);
  return err;
}

int iofs_dma_read(struct iofs_domain *domain, uint64_t iova, void *buf, size_t length,
                  struct iofs_dma_fault *fault) {
  return move(domain, iova, buf, length, 0, fault);
}

int iofs_dma_write(struct iofs_domain *domain, uint64_t iova, const void *buf, size_t length,
                   struct iofs_dma_fault *fault) {
  return move(domain, iova, (void *)buf, length, 1, fault);
}
