/*
 * The NVMe controller: its registers, and how it is switched on and off (nvme.h; 3.1, 7.6).
 *
 * Registers lie in BAR memory, where a client's mapping shows them; every write, however it came,
 * is taken in here and what the register then holds is put back. INTMC shows 0 there, so that any
 * store to it is seen.
 */
#include "nvme.h"

#include <assert.h>
#include <time.h>

#include "alloc.h"

/* MQES; contiguous queues; 7.5 s to get ready; NVM command set and others; pages up to 64 KiB. */
#define CAP                                                                 \
  (NVME_MQES | 1ull << 16 | 15ull << 24 | 1ull << 37 | 1ull << 43 | \
   (uint64_t)NVME_MPSMAX << 52)

#define CSS_NVM 0
#define CSS_ALL 6

uint64_t nvme_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- registers; with the lock held ------------------------------------------------------------ */

static void publish(struct nvme_ctrl *ctrl) {
  struct iommufs_device *device = ctrl->device;
  iommufs_store(device, 0, NVME_CAP, 8, CAP);
  iommufs_store(device, 0, NVME_VS, 4, NVME_VERSION);
  iommufs_store(device, 0, NVME_INTMS, 4, ctrl->mask);
  iommufs_store(device, 0, NVME_INTMC, 4, 0);
  iommufs_store(device, 0, NVME_CC, 4, ctrl->cc);
  iommufs_store(device, 0, NVME_NSSR, 4, 0);
  iommufs_store(device, 0, NVME_AQA, 4, ctrl->aqa);
  iommufs_store(device, 0, NVME_ASQ, 8, ctrl->asq);
  iommufs_store(device, 0, NVME_ACQ, 8, ctrl->acq);
  iommufs_store(device, 0, NVME_CSTS, 4, ctrl->csts);
}

/* What is watched, in the order in which stores seen together count: what starts something comes
 * after what it uses. The read-only ones are here so that a store does not stay. */
static const struct {
  uint16_t offset, size;
} words[] = {{NVME_CAP, 8},   {NVME_VS, 4},    {NVME_CSTS, 4},  {NVME_NSSR, 4}, {NVME_AQA, 4},
             {NVME_ASQ, 8},   {NVME_ACQ, 8},   {NVME_INTMS, 4}, {NVME_INTMC, 4}, {NVME_CC, 4}};

static int watch(struct nvme_ctrl *ctrl) {
  int err = 0;
  for (size_t i = 0; i < sizeof words / sizeof *words && !err; i++)
    err = iommufs_watch(ctrl->device, 0, words[i].offset, words[i].size);
  for (unsigned i = 0; i < 2 * (ctrl->nvme->max_queues + 1) && !err; i++)
    err = iommufs_watch(ctrl->device, 0, NVME_DOORBELLS + 4 * i, 4);
  return err;
}

static void write_cc(struct nvme_ctrl *ctrl, uint32_t value) {
  value &= NVME_CC_WRITABLE;
  if (ctrl->cc & NVME_CC_EN && !(value & NVME_CC_EN))
    ctrl->left = 1;
  ctrl->cc = value;
  ctrl->attention |= NVME_CHANGED_CC;
}

static void set_half(uint64_t *reg, uint64_t offset, uint32_t value) {
  unsigned shift = offset & 4 ? 32 : 0;
  *reg = (*reg & ~((uint64_t)UINT32_MAX << shift)) | (uint64_t)value << shift;
}

static void write_dword(struct nvme_ctrl *ctrl, uint64_t offset, uint32_t value) {
  switch (offset) {
  case NVME_INTMS:
  case NVME_INTMC:
    ctrl->mask = offset == NVME_INTMS ? ctrl->mask | value : ctrl->mask & ~value;
    ctrl->attention |= NVME_CHANGED_MASK;
    break;
  case NVME_CC:
    write_cc(ctrl, value);
    break;
  case NVME_AQA:
    ctrl->aqa = value & 0x0fff0fff;
    break;
  case NVME_ASQ:
  case NVME_ASQ + 4:
    set_half(&ctrl->asq, offset, value);
    ctrl->asq &= ~0xfffull;
    break;
  case NVME_ACQ:
  case NVME_ACQ + 4:
    set_half(&ctrl->acq, offset, value);
    ctrl->acq &= ~0xfffull;
    break;
  default: /* read-only, or none */
    break;
  }
}

static void ring(struct nvme_ctrl *ctrl, uint64_t offset, uint32_t value) {
  uint64_t i = (offset - NVME_DOORBELLS) / 4;
  if (i >= 2 * (ctrl->nvme->max_queues + 1))
    return;
  ctrl->doorbells[i] = value;
  ctrl->rung[i / 64] |= 1ull << i % 64;
  if (iommufs_load(ctrl->device, 0, offset, 4) != value) /* it did not come through a mapping */
    iommufs_store(ctrl->device, 0, offset, 4, value);
}

/* 3.1: accesses are of four bytes, or of eight to registers of eight. */
static void write_register(void *ctrl_, unsigned bar, uint64_t offset, unsigned size,
                           uint64_t value) {
  struct nvme_ctrl *ctrl = ctrl_;
  if (bar || size < 4)
    return;
  for (unsigned i = 0; i < size; i += 4, value >>= 32)
    if (offset + i >= NVME_DOORBELLS)
      ring(ctrl, offset + i, (uint32_t)value);
    else
      write_dword(ctrl, offset + i, (uint32_t)value);
  if (offset < NVME_DOORBELLS)
    publish(ctrl);
}

static uint64_t read_register(void *ctrl_, unsigned bar, uint64_t offset, unsigned size) {
  struct nvme_ctrl *ctrl = ctrl_;
  uint64_t word = iommufs_load(ctrl->device, bar, offset & ~7ull, 8);
  if ((offset & ~7ull) == (NVME_INTMC & ~7ull))
    word |= ctrl->mask;
  word >>= 8 * (offset & 7);
  return size == 8 ? word : word & ((1ull << 8 * size) - 1);
}

/* ---- on and off; by the thread ---------------------------------------------------------------- */

static void set_csts(struct nvme_ctrl *ctrl, uint32_t clear, uint32_t set) {
  iommufs_lock(ctrl->device);
  ctrl->csts = (ctrl->csts & ~clear) | set;
  iommufs_store(ctrl->device, 0, NVME_CSTS, 4, ctrl->csts);
  iommufs_unlock(ctrl->device);
}

void nvme_fail(struct nvme_ctrl *ctrl, const char *why) {
  if (!ctrl->ready || iommufs_ended(ctrl->device))
    return;
  ctrl->ready = 0;
  iommufs_report(ctrl->device, why);
  set_csts(ctrl, 0, NVME_CSTS_CFS);
}

void nvme_set_doorbell(struct nvme_ctrl *ctrl, unsigned i, uint32_t value) {
  iommufs_lock(ctrl->device);
  if (iommufs_load(ctrl->device, 0, NVME_DOORBELLS + 4 * i, 4) != value)
    iommufs_store(ctrl->device, 0, NVME_DOORBELLS + 4 * i, 4, value);
  ctrl->doorbells[i] = value;
  ctrl->rung[i / 64] &= ~(1ull << i % 64);
  iommufs_unlock(ctrl->device);
}

/* None but the admin queues is there, or not even these. */
static void reset_doorbells(struct nvme_ctrl *ctrl, int admin) {
  for (unsigned i = 0; i < 2 * (ctrl->nvme->max_queues + 1); i++)
    nvme_set_doorbell(ctrl, i, admin && i < 2 ? 0 : NVME_NO_QUEUE);
}

/* Controller level reset: what is kept are the admin queue registers (7.3.2). */
static void leave(struct nvme_ctrl *ctrl) {
  ctrl->ready = 0;
  nvme_queues_drop(ctrl);
  nvme_drop_delayed(ctrl, -1);
  nvme_forget_waiting(ctrl);
  ctrl->n_aers = 0;
  ctrl->masked_events = 0;
  for (unsigned i = 0; i < sizeof ctrl->events / sizeof *ctrl->events; i++)
    ctrl->events[i] = 0;
  nvme_features_reset(ctrl);
  reset_doorbells(ctrl, 0);
  nvme_update_irqs(ctrl);
  set_csts(ctrl, NVME_CSTS_RDY | NVME_CSTS_CFS | NVME_CSTS_SHST, 0);
}

static void enter(struct nvme_ctrl *ctrl, uint32_t cc) {
  unsigned css = nvme_cc_css(cc);
  ctrl->page_lg2 = 12 + nvme_cc_mps(cc);
  if ((css != CSS_NVM && css != CSS_ALL) || nvme_cc_mps(cc) > NVME_MPSMAX ||
      (cc >> 11 & 7) != 0 || nvme_queue_start_admin(ctrl)) {
    iommufs_report(ctrl->device, "the controller was enabled with values that it does not take");
    set_csts(ctrl, 0, NVME_CSTS_CFS);
    return;
  }
  reset_doorbells(ctrl, 1);
  ctrl->ready = 1;
  set_csts(ctrl, 0, NVME_CSTS_RDY);
}

static void shut_down(struct nvme_ctrl *ctrl) {
  for (uint32_t i = 0; i < ctrl->nvme->n_namespaces; i++)
    nvme_ns_flush(&ctrl->nvme->namespaces[i]);
  set_csts(ctrl, NVME_CSTS_SHST, NVME_CSTS_SHST_COMPLETE);
}

static void follow_cc(struct nvme_ctrl *ctrl) {
  iommufs_lock(ctrl->device);
  uint32_t cc = ctrl->cc, csts = ctrl->csts;
  int left = ctrl->left;
  ctrl->left = 0;
  iommufs_unlock(ctrl->device);
  if (left) {
    leave(ctrl);
    csts = 0;
  }
  if (nvme_cc_shn(cc) && !(csts & NVME_CSTS_SHST))
    shut_down(ctrl);
  else if (!nvme_cc_shn(cc) && csts & NVME_CSTS_SHST)
    set_csts(ctrl, NVME_CSTS_SHST, 0);
  if (cc & NVME_CC_EN && !(csts & (NVME_CSTS_RDY | NVME_CSTS_CFS)))
    enter(ctrl, cc);
}

static int poll(void *ctrl_) {
  struct nvme_ctrl *ctrl = ctrl_;
  uint32_t attention = ctrl->attention ? __atomic_exchange_n(&ctrl->attention, 0, __ATOMIC_ACQ_REL)
                                       : 0;
  if (attention & NVME_CHANGED_CC)
    follow_cc(ctrl);
  if (attention)
    nvme_update_irqs(ctrl);
  return nvme_queues_poll(ctrl) + (attention != 0);
}

/* ---- the model -------------------------------------------------------------------------------- */

static void end(void *ctrl_) {
  struct nvme_ctrl *ctrl = ctrl_;
  if (ctrl->ready && !(ctrl->csts & NVME_CSTS_SHST))
    ctrl->nvme->unsafe_shutdowns++;
  nvme_drop_delayed(ctrl, -1);
  alloc_free(ctrl->sqs);
  alloc_free(ctrl->cqs);
  alloc_free(ctrl->buffer);
  alloc_free(ctrl);
}

static void *start(void *nvme_, struct iommufs_device *device) {
  struct nvme *nvme = nvme_;
  struct nvme_ctrl *ctrl = alloc_zeroed(sizeof *ctrl);
  if (!ctrl)
    return NULL;
  ctrl->nvme = nvme;
  ctrl->device = device;
  ctrl->sqs = alloc_array(nvme->max_queues + 1, sizeof *ctrl->sqs);
  ctrl->cqs = alloc_array(nvme->max_queues + 1, sizeof *ctrl->cqs);
  ctrl->buffer = alloc_aligned(nvme_max_transfer(nvme), 4096);
  nvme_features_reset(ctrl);
  if (!ctrl->sqs || !ctrl->cqs || !ctrl->buffer) {
    end(ctrl);
    return NULL;
  }
  reset_doorbells(ctrl, 0);
  publish(ctrl);
  if (watch(ctrl)) {
    end(ctrl);
    return NULL;
  }
  nvme->power_cycles++;
  return ctrl;
}

static void *create(const char *const *options, char *error, size_t size) {
  return nvme_create(options, error, size);
}

static void destroy(void *nvme) { nvme_destroy(nvme); }

const struct iommufs_model nvme_model = {
    .abi = IOMMUFS_DEVICE_ABI,
    .create = create,
    .destroy = destroy,
    .start = start,
    .end = end,
    .read = read_register,
    .write = write_register,
    .poll = poll,
};
