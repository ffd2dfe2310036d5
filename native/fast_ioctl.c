/*
 * The plain case of hot calls, carried out by a reader: the client's structure is the one we know,
 * and all goes well. Whatever else it is, the call is Python's (iommufd/, vfio/), where the rules
 * stand; so nothing here that is left to it has changed anything that would matter if done again.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "fast.h"
#include "iommufd.h"
#include "iopt.h"
#include "job.h"
#include "vfio.h"

enum { PYTHONS, DONE };

#define ALL_MAP_FLAGS (IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)
#define MAX_HOLES 64

/* What a call works with. */
struct call {
  const struct iofs_ioctl *ioctl;
  struct iofs_fast *fast;
  int32_t *result;
};

/* The first bytes of the payload, read anew if it goes on in another page: 1 if all are here. */
static int fetch(const struct call *call, void *bytes, size_t length) {
  const struct iofs_ioctl *ioctl = call->ioctl;
  if (ioctl->prefetched < length)
    return iofs_client_read(ioctl->tid, ioctl->arg, bytes, length) == (ssize_t)length;
  memcpy(bytes, ioctl->payload, length);
  return 1;
}

/* The payload, if the client's structure is exactly ours. */
static int take(const struct call *call, void *cmd, size_t size) {
  uint32_t user_size;
  if (call->ioctl->compat || !fetch(call, cmd, size))
    return 0;
  memcpy(&user_size, cmd, sizeof user_size);
  return user_size == size;
}

static int write_back(const struct call *call, uint64_t offset, const void *bytes, size_t length) {
  const struct iofs_ioctl *ioctl = call->ioctl;
  return iofs_client_write(ioctl->tid, ioctl->arg + offset, bytes, length) == (ssize_t)length;
}

/* The last step. What the call did stays, even if the client cannot be told. */
static int respond(const struct call *call, const void *cmd, size_t size) {
  *call->result = write_back(call, 0, cmd, size) ? 0 : -EFAULT;
  return DONE;
}

/* enum iofs_prot; 0: the flags are unusual. */
static uint32_t prot_of(uint32_t flags) {
  if (flags & ~ALL_MAP_FLAGS)
    return 0;
  return (flags & IOMMU_IOAS_MAP_READABLE ? IOFS_READ : 0) |
         (flags & IOMMU_IOAS_MAP_WRITEABLE ? IOFS_WRITE : 0);
}

static int ioas_map(const struct call *call) {
  struct iommu_ioas_map cmd;
  struct iofs_charge charge;
  if (!take(call, &cmd, sizeof cmd))
    return PYTHONS;
  uint32_t prot = prot_of(cmd.flags);
  if (!prot || cmd.__reserved || cmd.iova == UINT64_MAX || cmd.length == UINT64_MAX)
    return PYTHONS;
  struct iofs_iopt *iopt = fast_get_iopt(call->fast, cmd.ioas_id);
  if (!iopt)
    return PYTHONS;
  struct iofs_mm *mm = fast_get_source(call->fast, call->ioctl, &charge);
  int err = -ESRCH;
  if (mm) {
    uint64_t iova = cmd.iova;
    err = iofs_iopt_map_user(iopt, mm, &charge, cmd.user_va, cmd.length, prot,
                             !!(cmd.flags & IOMMU_IOAS_MAP_FIXED_IOVA), &iova);
    cmd.iova = iova;
    iofs_mm_put(mm);
  }
  iopt_put(iopt);
  return err ? PYTHONS : respond(call, &cmd, sizeof cmd);
}

static int ioas_unmap(const struct call *call) {
  struct iommu_ioas_unmap cmd;
  uint64_t unmapped = 0;
  if (!take(call, &cmd, sizeof cmd))
    return PYTHONS;
  int everything = !cmd.iova && cmd.length == UINT64_MAX;
  if (!everything && (cmd.iova == UINT64_MAX || cmd.length == UINT64_MAX))
    return PYTHONS;
  struct iofs_iopt *iopt = fast_get_iopt(call->fast, cmd.ioas_id);
  if (!iopt)
    return PYTHONS;
  /* If it stops half-way, Python stops at the same area. */
  int err = iopt_unmap_untold(iopt, cmd.iova, cmd.length, &unmapped);
  iopt_put(iopt);
  if (err || (!unmapped && !everything))
    return PYTHONS;
  cmd.length = unmapped;
  return respond(call, &cmd, sizeof cmd);
}

static int copy(const struct iommu_ioas_copy *cmd, struct iofs_iopt *dst, struct iofs_iopt *src,
                uint32_t prot, uint64_t *iova) {
  struct iofs_piece_list *list;
  int err = iofs_iopt_get_pieces(src, cmd->src_iova, cmd->length, &list);
  if (err)
    return err;
  err = iofs_iopt_map_pieces(dst, list, prot, !!(cmd->flags & IOMMU_IOAS_MAP_FIXED_IOVA), iova);
  iofs_piece_list_free(list);
  return err;
}

static int ioas_copy(const struct call *call) {
  struct iommu_ioas_copy cmd;
  if (!take(call, &cmd, sizeof cmd))
    return PYTHONS;
  uint32_t prot = prot_of(cmd.flags);
  if (!prot || cmd.length == UINT64_MAX || cmd.src_iova == UINT64_MAX ||
      cmd.dst_iova == UINT64_MAX)
    return PYTHONS;
  struct iofs_iopt *src = fast_get_iopt(call->fast, cmd.src_ioas_id);
  struct iofs_iopt *dst = fast_get_iopt(call->fast, cmd.dst_ioas_id);
  uint64_t iova = cmd.dst_iova;
  int err = src && dst ? copy(&cmd, dst, src, prot, &iova) : -ENOENT;
  if (src)
    iopt_put(src);
  if (dst)
    iopt_put(dst);
  cmd.dst_iova = iova;
  return err ? PYTHONS : respond(call, &cmd, sizeof cmd);
}

static int ioas_iova_ranges(const struct call *call) {
  struct iommu_ioas_iova_ranges cmd;
  struct iofs_range holes[MAX_HOLES];
  if (!take(call, &cmd, sizeof cmd) || cmd.__reserved)
    return PYTHONS;
  struct iofs_iopt *iopt = fast_get_iopt(call->fast, cmd.ioas_id);
  if (!iopt)
    return PYTHONS;
  size_t n = iofs_iopt_holes(iopt, holes, MAX_HOLES), length = n * sizeof *holes;
  cmd.out_iova_alignment = iofs_iopt_alignment(iopt);
  iopt_put(iopt);
  if (n > MAX_HOLES || n > cmd.num_iovas ||
      iofs_client_write(call->ioctl->tid, cmd.allowed_iovas, holes, length) != (ssize_t)length)
    return PYTHONS;
  cmd.num_iovas = (uint32_t)n;
  return respond(call, &cmd, sizeof cmd);
}

/* ---- VFIO's container ------------------------------------------------------------------------ */

/* Of a device's file this number is a hot reset: nothing is published there, so Python has it. */
static int map_dma(const struct call *call) {
  struct vfio_iommu_type1_dma_map cmd;
  struct iofs_charge charge;
  if (!take(call, &cmd, sizeof cmd) ||
      cmd.flags & ~(uint32_t)(VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE) || !cmd.flags)
    return PYTHONS;
  struct iofs_iopt *iopt = fast_get_compat(call->fast);
  if (!iopt)
    return PYTHONS;
  uint32_t prot = (cmd.flags & VFIO_DMA_MAP_FLAG_READ ? IOFS_READ : 0) |
                  (cmd.flags & VFIO_DMA_MAP_FLAG_WRITE ? IOFS_WRITE : 0);
  struct iofs_mm *mm = fast_get_source(call->fast, call->ioctl, &charge);
  uint64_t iova = cmd.iova;
  int err = -ESRCH;
  if (mm) {
    err = iofs_iopt_map_user(iopt, mm, &charge, cmd.vaddr, cmd.size, prot, 1, &iova);
    iofs_mm_put(mm);
  }
  iopt_put(iopt);
  *call->result = 0;
  return err ? PYTHONS : DONE;
}

/* Version 1 may have to split mappings first, which is Python's. */
static int unmap_dma(const struct call *call) {
  struct vfio_iommu_type1_dma_unmap cmd;
  uint64_t unmapped = 0;
  if (!take(call, &cmd, sizeof cmd) || cmd.flags || cmd.size == UINT64_MAX)
    return PYTHONS;
  struct iofs_iopt *iopt = fast_get_compat(call->fast);
  if (!iopt)
    return PYTHONS;
  int err = iofs_iopt_huge_pages(iopt)
                ? iopt_unmap_untold(iopt, cmd.iova, cmd.size, &unmapped)
                : -EAGAIN;
  iopt_put(iopt);
  if (!unmapped)
    return PYTHONS;
  cmd.size = unmapped; /* said also if it stopped half-way */
  respond(call, &cmd, sizeof cmd);
  if (!*call->result)
    *call->result = err;
  return DONE;
}

/* ---- devices --------------------------------------------------------------------------------- */

static const struct fast_answer *find_answer(const struct iofs_fast *fast, uint32_t cmd,
                                             uint32_t index) {
  const struct fast_answer *answer = fast->answers;
  while (answer && (answer->cmd != cmd || answer->index != index))
    answer = answer->next;
  return answer;
}

/* The structure and the chain as far as they are to be written; 0: Python's. */
static uint32_t compose(struct iofs_fast *fast, uint32_t cmd, uint32_t index, uint32_t argsz,
                        uint8_t *bytes, size_t room) {
  uint32_t length = 0;
  pthread_mutex_lock(&fast->lock);
  const struct fast_answer *answer = find_answer(fast, cmd, index);
  if (answer && answer->length + answer->chain_length <= room) {
    uint32_t whole = answer->length + answer->chain_length;
    uint32_t cap_offset = 0;
    length = argsz < answer->length ? argsz : answer->length;
    memcpy(bytes, answer->bytes, whole);
    if (answer->chain_length && argsz < whole)
      argsz = whole;
    else if (answer->chain_length)
      cap_offset = answer->length, length = whole;
    memcpy(bytes, &argsz, sizeof argsz);
    if (answer->cap_at)
      memcpy(bytes + answer->cap_at, &cap_offset, sizeof cap_offset);
  }
  pthread_mutex_unlock(&fast->lock);
  return length;
}

/* min_size: what a client must have; index_at: where the index lies, 0 if there is none. */
static int answer(const struct call *call, uint32_t min_size, uint32_t index_at) {
  uint8_t bytes[256];
  uint32_t argsz, index = 0;
  if (!fetch(call, bytes, min_size))
    return PYTHONS;
  memcpy(&argsz, bytes, sizeof argsz);
  if (index_at)
    memcpy(&index, bytes + index_at, sizeof index);
  if (argsz < min_size)
    return PYTHONS;
  uint32_t length = compose(call->fast, call->ioctl->cmd, index, argsz, bytes, sizeof bytes);
  if (!length || !write_back(call, 0, bytes, length))
    return PYTHONS;
  *call->result = 0;
  return DONE;
}

/* Ring eventfds, as if the device had. */
static int set_irqs(const struct call *call) {
  struct vfio_irq_set cmd;
  const uint32_t plain = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
  const size_t size = offsetof(struct vfio_irq_set, data);
  struct iofs_fast *fast = call->fast;
  int err = 0, done = PYTHONS;
  if (!fetch(call, &cmd, size))
    return PYTHONS;
  if (cmd.argsz < size || cmd.flags != plain || cmd.index >= FAST_N_IRQ_INDEXES || !cmd.count)
    return PYTHONS;
  pthread_mutex_lock(&fast->lock);
  uint32_t n = fast->triggers[cmd.index].n;
  const int32_t *fds = fast->triggers[cmd.index].fds;
  if (cmd.start < n && cmd.count <= n - cmd.start) {
    for (uint32_t i = cmd.start; i < cmd.start + cmd.count && !err; i++)
      if (fds[i] >= 0)
        err = iofs_eventfd_signal(fds[i]);
    done = DONE;
    *call->result = err;
  }
  pthread_mutex_unlock(&fast->lock);
  return done;
}

static int get_info(const struct call *call) {
  return answer(call, offsetof(struct vfio_device_info, cap_offset), 0);
}

static int get_region_info(const struct call *call) {
  return answer(call, sizeof(struct vfio_region_info), offsetof(struct vfio_region_info, index));
}

static int get_irq_info(const struct call *call) {
  return answer(call, sizeof(struct vfio_irq_info), offsetof(struct vfio_irq_info, index));
}

/* ---- the table ------------------------------------------------------------------------------- */

typedef int handler(const struct call *call);

static handler *find(uint32_t cmd) {
  switch (cmd) {
  case IOMMU_IOAS_MAP:
    return ioas_map;
  case IOMMU_IOAS_UNMAP:
    return ioas_unmap;
  case IOMMU_IOAS_COPY:
    return ioas_copy;
  case IOMMU_IOAS_IOVA_RANGES:
    return ioas_iova_ranges;
  case VFIO_IOMMU_MAP_DMA:
    return map_dma;
  case VFIO_IOMMU_UNMAP_DMA:
    return unmap_dma;
  case VFIO_DEVICE_GET_INFO:
    return get_info;
  case VFIO_DEVICE_GET_REGION_INFO:
    return get_region_info;
  case VFIO_DEVICE_GET_IRQ_INFO:
    return get_irq_info;
  case VFIO_DEVICE_SET_IRQS:
    return set_irqs;
  }
  return NULL;
}

int fast_is_hot(uint32_t cmd) { return !!find(cmd); }

int fast_maps(uint32_t cmd) { return cmd == IOMMU_IOAS_MAP || cmd == VFIO_IOMMU_MAP_DMA; }

int fast_ioctl(const struct iofs_ioctl *ioctl, int32_t *result) {
  struct iofs_fast *fast = fast_get(ioctl->fh);
  if (!fast)
    return 0;
  struct call call = {ioctl, fast, result};
  int done = find(ioctl->cmd)(&call) == DONE;
  fast_put(fast);
  return done;
}
