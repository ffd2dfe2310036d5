/*
 * What a device does through a domain: the whole span is translated first, under the lock of the
 * page table, then copied; private memory, which may take any time, without a lock.
 */
#include <errno.h>
#include <stdatomic.h>

#include "guard.h"
#include "iotlb.h"

#define QUICK (1u << 20) /* bytes */

static int refuse(struct iofs_dma_fault *fault, uint64_t iova, int write,
                  enum iofs_dma_reason reason) {
  *fault = (struct iofs_dma_fault){iova, (uint32_t)!!write, reason};
  return -EFAULT;
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
    const struct translation *found =
        iova > domain->aperture_last ? NULL : iotlb_find(domain, iova);
    if (!found && (iova > domain->aperture_last || !(found = iotlb_fill(domain, iova, length))))
      return refuse(fault, iova, write, IOFS_DMA_UNMAPPED);
    if (!(found->prot & want))
      return refuse(fault, iova, write, IOFS_DMA_PERMISSION);
    struct copy_run run = found->run;
    uint64_t skip = iova - found->start, left = found->last - iova + 1;
    run.length = left < length ? left : length;
    if (run.window)
      run.memory += skip;
    else
      run.address += skip;
    int err = copy_list_add(list, &run);
    if (err)
      return err;
    iova += run.length;
    length -= run.length;
  }
  return 0;
}

/* Whether copying takes so little time that the table may as well stay locked: shared memory only. */
static int is_quick(const struct copy_list *list, uint64_t length) {
  for (size_t i = 0; i < list->n; i++)
    if (!list->runs[i].window)
      return 0;
  return length <= QUICK;
}

/* Copy, with the lock of the domain held on entry and given back. */
static int copy_and_unlock(struct iofs_domain *domain, struct copy_list *list, void *buf,
                           size_t length, int write, uint64_t *done) {
  int err, place = 0, quick = is_quick(list, length);
  struct flights *flights = &domain->flights[domain->phase];
  if (quick)
    err = copy_list_move(list, buf, write, done);
  else {
    copy_list_hold(list);
    place = flight_begin(flights);
  }
  pthread_rwlock_unlock(&domain->lock);
  if (!quick) {
    err = copy_list_move(list, buf, write, done);
    flight_end(flights, place);
  }
  return err;
}

/* Any span, with the lock of the domain held on entry and given back. */
static int move_and_unlock(struct iofs_domain *domain, uint64_t iova, void *buf, size_t length,
                           int write, struct iofs_dma_fault *fault) {
  struct copy_list list;
  uint64_t done;
  copy_list_init_borrowing(&list);
  int err = translate(domain, iova, length, write, &list, fault);
  if (err)
    pthread_rwlock_unlock(&domain->lock);
  else {
    if (write && domain->tracks_dirty)
      mark_written(&domain->pt, iova, length);
    if (copy_and_unlock(domain, &list, buf, length, write, &done))
      err = refuse(fault, iova + done, write, IOFS_DMA_GONE);
  }
  copy_list_free(&list);
  return err;
}

#define NOT_PLAIN 1

/* What most spans are: shared memory, in one run that the IOTLB knows. Under the lock; EFAULT: the
 * memory is gone. */
static int move_plain(struct iofs_domain *domain, uint64_t iova, void *buf, size_t length,
                      int write) {
  const struct translation *found = iotlb_find(domain, iova);
  if (!found || !found->run.window || !(found->prot & (write ? IOFS_WRITE : IOFS_READ)))
    return NOT_PLAIN;
  if (!length || length > QUICK || length - 1 > found->last - iova ||
      iova > domain->aperture_last || (write && !found->run.window->writable))
    return NOT_PLAIN;
  if (write && domain->tracks_dirty)
    mark_written(&domain->pt, iova, length);
  unsigned char *memory = found->run.memory + (iova - found->start);
  return write ? guard_copy(memory, buf, length) : guard_copy(buf, memory, length);
}

static int move(struct iofs_domain *domain, uint64_t iova, void *buf, size_t length, int write,
                struct iofs_dma_fault *fault) {
  uint64_t last;
  *fault = (struct iofs_dma_fault){0};
  if (length && __builtin_add_overflow(iova, length - 1, &last))
    return refuse(fault, iova, write, IOFS_DMA_UNMAPPED);
  pthread_rwlock_rdlock(&domain->lock);
  int err = move_plain(domain, iova, buf, length, write);
  if (err == NOT_PLAIN)
    return move_and_unlock(domain, iova, buf, length, write, fault);
  pthread_rwlock_unlock(&domain->lock);
  return err ? refuse(fault, iova, write, IOFS_DMA_GONE) : 0;
}

int iofs_dma_read(struct iofs_domain *domain, uint64_t iova, void *buf, size_t length,
                  struct iofs_dma_fault *fault) {
  return move(domain, iova, buf, length, 0, fault);
}

int iofs_dma_write(struct iofs_domain *domain, uint64_t iova, const void *buf, size_t length,
                   struct iofs_dma_fault *fault) {
  return move(domain, iova, (void *)buf, length, 1, fault);
}
