/*
 * Queues: doorbells, fetching commands, posting completions, interrupts (4.1, 4.6, 5.3 to 5.6).
 *
 * Commands of a queue are fetched and their completions written several at a time; whoever waits
 * for the first of a batch waits for the others too, which takes microseconds. A burst that moved
 * much ends: what is left of what it fetched is fetched again.
 */
#include <errno.h>
#include <string.h>

#include "nvme.h"

#define SQE_LG2 6
#define CQE_LG2 4

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* ---- interrupts ------------------------------------------------------------------------------- */

static int waits(const struct nvme_cq *cq) {
  return cq->used && cq->interrupts && cq->head != cq->tail;
}

/* The line is vector 0, whatever the queue was made with. */
static int is_masked(const struct nvme_ctrl *ctrl, const struct nvme_cq *cq, int messages) {
  uint32_t vector = messages ? cq->vector : 0;
  return vector < 32 && __atomic_load_n(&ctrl->mask, __ATOMIC_RELAXED) >> vector & 1;
}

/* The line follows the queues; a message that was masked goes out when it is not any more. */
void nvme_update_irqs(struct nvme_ctrl *ctrl) {
  int messages = iommufs_messages_on(ctrl->device), level = 0;
  for (unsigned i = 0; i <= ctrl->nvme->max_queues; i++) {
    const struct nvme_cq *cq = &ctrl->cqs[i];
    if (!waits(cq) || is_masked(ctrl, cq, messages) || cq->coalesced_since)
      continue;
    if (messages)
      iommufs_message(ctrl->device, cq->vector);
    level = 1;
  }
  ctrl->line = level && !messages;
  iommufs_line(ctrl->device, ctrl->line);
}

static void interrupt(struct nvme_ctrl *ctrl, struct nvme_cq *cq) {
  int messages = iommufs_messages_on(ctrl->device);
  cq->coalesced_since = 0;
  cq->n_coalesced = 0;
  if (!cq->interrupts || is_masked(ctrl, cq, messages))
    return;
  if (messages)
    iommufs_message(ctrl->device, cq->vector);
  else if (!ctrl->line) {
    ctrl->line = 1;
    iommufs_line(ctrl->device, 1);
  }
}

/* n completions more lie in the queue. 5.21.1.8: of I/O queues, an interrupt may wait. */
static void notify(struct nvme_ctrl *ctrl, struct nvme_cq *cq, uint32_t n) {
  uint32_t threshold = (ctrl->features.coalescing & 0xff) + 1;
  cq->n_coalesced += n;
  if (cq == ctrl->cqs || !(ctrl->features.coalescing >> 8 & 0xff) || cq->no_coalescing ||
      cq->n_coalesced >= threshold)
    interrupt(ctrl, cq);
  else if (!cq->coalesced_since)
    cq->coalesced_since = nvme_now();
}

/* Interrupts whose time has come: how many are still to wait. */
static int poll_coalesced(struct nvme_ctrl *ctrl) {
  uint64_t time = (uint64_t)(ctrl->features.coalescing >> 8 & 0xff) * 100000;
  int left = 0;
  if (!time)
    return 0;
  for (unsigned i = 1; i <= ctrl->nvme->max_queues; i++) {
    struct nvme_cq *cq = &ctrl->cqs[i];
    if (cq->used && cq->coalesced_since && nvme_now() - cq->coalesced_since >= time)
      interrupt(ctrl, cq);
    left += cq->used && cq->coalesced_since;
  }
  return left;
}

/* ---- completions ------------------------------------------------------------------------------ */

/* From one place in a ring to another. */
static uint32_t distance(uint32_t from, uint32_t to, uint32_t size) {
  return to >= from ? to - from : to + size - from;
}

static uint32_t room_of(const struct nvme_cq *cq) {
  return cq->size - 1 - distance(cq->head, cq->tail, cq->size);
}

/* The tail goes ahead with every entry of the batch, which is written later. */
static void flush(struct nvme_ctrl *ctrl, struct nvme_cq *cq) {
  uint32_t n = cq->n_batched, start = (cq->tail + cq->size - n) % cq->size;
  uint32_t first = min_u32(n, cq->size - start);
  if (!n)
    return;
  cq->n_batched = 0;
  if (iommufs_dma_write(ctrl->device, cq->base + ((uint64_t)start << CQE_LG2), cq->batch,
                        first << CQE_LG2) ||
      (first < n && iommufs_dma_write(ctrl->device, cq->base, cq->batch + first,
                                      (n - first) << CQE_LG2))) {
    nvme_fail(ctrl, "fatal: a completion could not be written");
    return;
  }
  notify(ctrl, cq, n);
}

static void post(struct nvme_ctrl *ctrl, uint16_t sqid, uint16_t cid, uint16_t status,
                 uint32_t result) {
  struct nvme_sq *sq = &ctrl->sqs[sqid];
  struct nvme_cq *cq = &ctrl->cqs[sq->cqid];
  if (cq->n_batched == NVME_BATCH)
    flush(ctrl, cq);
  cq->batch[cq->n_batched++] = (struct nvme_cqe){
      .result = result,
      .sqhd = (uint16_t)sq->head,
      .sqid = sqid,
      .cid = cid,
      .status = (uint16_t)(status << 1 | cq->phase),
  };
  if (++cq->tail == cq->size) {
    cq->tail = 0;
    cq->phase ^= 1;
  }
}

int nvme_can_complete(const struct nvme_ctrl *ctrl, uint16_t sqid) {
  const struct nvme_sq *sq = &ctrl->sqs[sqid];
  return ctrl->ready && sq->used && room_of(&ctrl->cqs[sq->cqid]);
}

void nvme_complete(struct nvme_ctrl *ctrl, uint16_t sqid, uint16_t cid, uint16_t status,
                   uint32_t result) {
  if (!nvme_can_complete(ctrl, sqid))
    return;
  post(ctrl, sqid, cid, status, result);
  flush(ctrl, &ctrl->cqs[ctrl->sqs[sqid].cqid]);
}

/* ---- commands --------------------------------------------------------------------------------- */

static void finish(struct nvme_ctrl *ctrl, uint16_t sqid, const struct nvme_cmd *cmd,
                   const struct nvme_injection *injection, uint16_t status, uint32_t result) {
  if (status & 0x7ff)
    nvme_log_error(ctrl, sqid, cmd, status);
  if (injection && (injection->drop || injection->latency_ns))
    status = nvme_delay(ctrl, sqid, cmd->cid,
                        injection->drop ? UINT64_MAX : nvme_now() + injection->latency_ns, status,
                        result);
  if (status != NVME_NO_ANSWER)
    post(ctrl, sqid, cmd->cid, status, result);
}

static void carry_out(struct nvme_ctrl *ctrl, uint16_t sqid, const struct nvme_cmd *cmd,
                      struct nvme_injection *injection) {
  uint32_t result = 0;
  uint16_t status;
  ctrl->request = 0;
  if (injection && injection->status)
    status = injection->status;
  else
    status = sqid ? nvme_io(ctrl, cmd, &result) : nvme_admin(ctrl, cmd, &result);
  if (iommufs_ended(ctrl->device))
    return;
  if (ctrl->request)
    nvme_wait_for_page(ctrl, sqid, cmd, injection);
  else if (status != NVME_NO_ANSWER)
    finish(ctrl, sqid, cmd, injection, status, result);
}

void nvme_resume(struct nvme_ctrl *ctrl, uint16_t sqid, const struct nvme_cmd *cmd,
                 struct nvme_injection *injection, int answer) {
  if (!answer)
    carry_out(ctrl, sqid, cmd, injection);
  else if (answer == -EFAULT)
    finish(ctrl, sqid, cmd, injection, NVME_DATA_TRANSFER, 0);
  if (ctrl->ready && !iommufs_ended(ctrl->device))
    flush(ctrl, &ctrl->cqs[ctrl->sqs[sqid].cqid]);
}

static int interrupted(const struct nvme_ctrl *ctrl) {
  return !ctrl->ready || ctrl->attention || iommufs_ended(ctrl->device);
}

/* A burst of commands; how many. */
static int serve(struct nvme_ctrl *ctrl, uint16_t sqid) {
  struct nvme_sq *sq = &ctrl->sqs[sqid];
  struct nvme_cq *cq = &ctrl->cqs[sq->cqid];
  struct nvme_cmd cmds[NVME_BURST];
  uint32_t end = sq->tail > sq->head ? sq->tail : sq->size;
  uint32_t n = min_u32(min_u32(end - sq->head, NVME_BURST), room_of(cq)), i = 0;
  if (!n || !nvme_can_wait(ctrl, sqid))
    return 0;
  if (iommufs_dma_read(ctrl->device, sq->base + ((uint64_t)sq->head << SQE_LG2), cmds,
                       n * sizeof *cmds)) {
    nvme_fail(ctrl, "fatal: a command could not be fetched");
    return 1;
  }
  /* A command may delete queues, though not the one it came by. */
  for (ctrl->n_moved = 0; i < n && ctrl->n_moved < NVME_BURST_BYTES && !interrupted(ctrl) &&
                          nvme_can_wait(ctrl, sqid);
       i++) {
    sq->head = sq->head + 1 == sq->size ? 0 : sq->head + 1;
    if (sqid && i + 1 < n)
      nvme_io_soon(ctrl, &cmds[i + 1]);
    carry_out(ctrl, sqid, &cmds[i], nvme_injected(ctrl, sqid, &cmds[i]));
  }
  if (ctrl->ready && !iommufs_ended(ctrl->device))
    flush(ctrl, cq);
  return 1;
}

/* ---- doorbells -------------------------------------------------------------------------------- */

/* As far as there is room for commands. */
static int is_tail(const struct nvme_sq *sq, uint32_t value) {
  return value < sq->size && distance(sq->tail, value, sq->size) <
                                 sq->size - distance(sq->head, sq->tail, sq->size);
}

/* As far as completions were written. */
static int is_head(const struct nvme_cq *cq, uint32_t value) {
  return value < cq->size && distance(cq->head, value, cq->size) <=
                                 distance(cq->head, cq->tail, cq->size) - cq->n_batched;
}

/* What a client may write is what lies ahead, within the queue; else 5.2: tell it. */
static void take_doorbell(struct nvme_ctrl *ctrl, unsigned i, uint32_t value) {
  struct nvme_sq *sq = &ctrl->sqs[i / 2];
  struct nvme_cq *cq = &ctrl->cqs[i / 2];
  int is_cq = i & 1;
  if (!(is_cq ? cq->used : sq->used)) {
    nvme_set_doorbell(ctrl, i, NVME_NO_QUEUE);
    nvme_event(ctrl, NVME_EVENT_ERROR, 0, 1);
    return;
  }
  if (!(is_cq ? is_head(cq, value) : is_tail(sq, value))) {
    nvme_event(ctrl, NVME_EVENT_ERROR, 1, 1);
    return;
  }
  if (!is_cq) {
    sq->tail = value;
    return;
  }
  cq->head = value;
  if (ctrl->line && !waits(cq))
    nvme_update_irqs(ctrl);
  if (cq == ctrl->cqs)
    nvme_events_deliver(ctrl);
}

static void take_doorbells(struct nvme_ctrl *ctrl) {
  for (unsigned w = 0; w < 2 * (ctrl->nvme->max_queues + 1) / 64 + 1; w++) {
    if (!ctrl->rung[w])
      continue;
    for (uint64_t bits = __atomic_exchange_n(&ctrl->rung[w], 0, __ATOMIC_ACQ_REL); bits;
         bits &= bits - 1) {
      unsigned i = 64 * w + (unsigned)__builtin_ctzll(bits);
      take_doorbell(ctrl, i, ctrl->doorbells[i]);
    }
  }
}

int nvme_queues_poll(struct nvme_ctrl *ctrl) {
  int n = 0;
  if (!ctrl->ready)
    return 0;
  take_doorbells(ctrl);
  for (unsigned i = 0; i <= ctrl->last_sq; i++) {
    const struct nvme_sq *sq = &ctrl->sqs[i];
    if (sq->head == sq->tail)
      continue;
    if (interrupted(ctrl))
      break;
    n += serve(ctrl, (uint16_t)i);
  }
  if (ctrl->delayed && ctrl->ready)
    n += nvme_complete_delayed(ctrl);
  if (ctrl->n_waiting && ctrl->ready)
    n += nvme_pages_poll(ctrl);
  if (ctrl->features.keep_alive && ctrl->ready)
    nvme_check_alive(ctrl);
  return n + poll_coalesced(ctrl);
}

/* ---- made and deleted ------------------------------------------------------------------------- */

void nvme_queues_drop(struct nvme_ctrl *ctrl) {
  memset(ctrl->sqs, 0, (ctrl->nvme->max_queues + 1) * sizeof *ctrl->sqs);
  memset(ctrl->cqs, 0, (ctrl->nvme->max_queues + 1) * sizeof *ctrl->cqs);
  ctrl->io_queues_made = 0;
  ctrl->last_sq = 0;
}

static void make_cq(struct nvme_cq *cq, uint64_t base, uint32_t size, int interrupts,
                    uint32_t vector) {
  *cq = (struct nvme_cq){.base = base,
                         .size = size,
                         .vector = vector,
                         .used = 1,
                         .phase = 1,
                         .interrupts = interrupts};
}

int nvme_queue_start_admin(struct nvme_ctrl *ctrl) {
  uint32_t sq_size = (ctrl->aqa & 0xfff) + 1, cq_size = (ctrl->aqa >> 16 & 0xfff) + 1;
  uint64_t page = 1ull << ctrl->page_lg2;
  if (sq_size < 2 || cq_size < 2 || (ctrl->asq | ctrl->acq) & (page - 1))
    return -EINVAL;
  make_cq(ctrl->cqs, ctrl->acq, cq_size, 1, 0);
  ctrl->cqs[0].n_sqs = 1;
  ctrl->sqs[0] = (struct nvme_sq){.base = ctrl->asq, .size = sq_size, .used = 1};
  return 0;
}

/* What creating either kind of queue checks: its number, its size, its place, and the size of an
 * entry in CC (a field of 4 bits at `shift`). */
static uint16_t check_new(const struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, int used,
                          unsigned shift, unsigned entry_lg2) {
  uint32_t size = cmd->cdw10 >> 16;
  if (used)
    return NVME_QUEUE_ID | NVME_DNR;
  if (!size || size > NVME_MQES || (ctrl->cc >> shift & 15) != entry_lg2)
    return NVME_QUEUE_SIZE | NVME_DNR;
  if (!(cmd->cdw11 & 1)) /* CAP.CQR: physically contiguous */
    return NVME_INVALID_FIELD | NVME_DNR;
  return cmd->prp1 & ((1ull << ctrl->page_lg2) - 1) ? NVME_PRP_OFFSET | NVME_DNR : 0;
}

static int is_io_queue(const struct nvme_ctrl *ctrl, uint32_t id) {
  return id && id <= ctrl->nvme->max_queues;
}

uint16_t nvme_create_cq(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd) {
  uint32_t id = cmd->cdw10 & 0xffff, vector = cmd->cdw11 >> 16;
  uint16_t status;
  if (!is_io_queue(ctrl, id))
    return NVME_QUEUE_ID | NVME_DNR;
  if ((status = check_new(ctrl, cmd, ctrl->cqs[id].used, 20, CQE_LG2)))
    return status;
  if (vector >= ctrl->nvme->n_vectors) /* MSI-X may be switched on later */
    return NVME_IRQ_VECTOR | NVME_DNR;
  make_cq(&ctrl->cqs[id], cmd->prp1, (cmd->cdw10 >> 16) + 1, !!(cmd->cdw11 & 2), vector);
  nvme_set_doorbell(ctrl, 2 * id + 1, 0);
  ctrl->io_queues_made = 1;
  return 0;
}

uint16_t nvme_create_sq(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd) {
  uint32_t id = cmd->cdw10 & 0xffff, cqid = cmd->cdw11 >> 16;
  uint16_t status;
  if (!is_io_queue(ctrl, cqid) || !is_io_queue(ctrl, id))
    return NVME_QUEUE_ID | NVME_DNR;
  if (!ctrl->cqs[cqid].used)
    return NVME_CQ_INVALID | NVME_DNR;
  if ((status = check_new(ctrl, cmd, ctrl->sqs[id].used, 16, SQE_LG2)))
    return status;
  ctrl->sqs[id] = (struct nvme_sq){
      .base = cmd->prp1, .size = (cmd->cdw10 >> 16) + 1, .cqid = cqid, .used = 1};
  ctrl->cqs[cqid].n_sqs++;
  if (id > ctrl->last_sq)
    ctrl->last_sq = id;
  nvme_set_doorbell(ctrl, 2 * id, 0);
  return 0;
}

uint16_t nvme_delete_sq(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd) {
  uint32_t id = cmd->cdw10 & 0xffff;
  if (!is_io_queue(ctrl, id) || !ctrl->sqs[id].used)
    return NVME_QUEUE_ID | NVME_DNR;
  nvme_drop_delayed(ctrl, (int)id);
  nvme_drop_waiting(ctrl, (uint16_t)id);
  flush(ctrl, &ctrl->cqs[ctrl->sqs[id].cqid]);
  ctrl->cqs[ctrl->sqs[id].cqid].n_sqs--;
  ctrl->sqs[id] = (struct nvme_sq){0};
  nvme_set_doorbell(ctrl, 2 * id, NVME_NO_QUEUE);
  return 0;
}

uint16_t nvme_delete_cq(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd) {
  uint32_t id = cmd->cdw10 & 0xffff;
  if (!is_io_queue(ctrl, id) || !ctrl->cqs[id].used)
    return NVME_QUEUE_ID | NVME_DNR;
  if (ctrl->cqs[id].n_sqs)
    return NVME_QUEUE_DELETION | NVME_DNR;
  ctrl->cqs[id] = (struct nvme_cq){0};
  nvme_set_doorbell(ctrl, 2 * id + 1, NVME_NO_QUEUE);
  nvme_update_irqs(ctrl);
  return 0;
}
