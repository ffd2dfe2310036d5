/* Errors on order: commands that fail, are late or are never answered (docs/nvme.md). */
#include "alloc.h"
#include "nvme.h"

/* A completion that is due this soon is waited for busily. */
#define SOON_NS 2000000ull

static int matches(const struct nvme_injection *injection, uint16_t sqid,
                   const struct nvme_cmd *cmd) {
  uint64_t lba = (uint64_t)cmd->cdw11 << 32 | cmd->cdw10;
  if (sqid ? !injection->io : !injection->admin)
    return 0;
  return (injection->queue < 0 || injection->queue == sqid) &&
         (injection->opcode < 0 || injection->opcode == cmd->opcode) &&
         (!injection->nsid || injection->nsid == cmd->nsid) &&
         (!sqid || (lba >= injection->first_lba && lba <= injection->last_lba));
}

struct nvme_injection *nvme_injected(struct nvme_ctrl *ctrl, uint16_t sqid,
                                     const struct nvme_cmd *cmd) {
  for (uint32_t i = 0; i < ctrl->nvme->n_injections; i++) {
    struct nvme_injection *injection = &ctrl->nvme->injections[i];
    if (!matches(injection, sqid, cmd) || injection->done >= injection->count)
      continue;
    uint64_t nth = injection->seen++;
    if (nth < injection->skip || (nth - injection->skip) % injection->every)
      continue;
    injection->done++;
    return injection;
  }
  return NULL;
}

uint16_t nvme_delay(struct nvme_ctrl *ctrl, uint16_t sqid, uint16_t cid, uint64_t due,
                    uint16_t status, uint32_t result) {
  struct nvme_delayed *delayed = alloc_zeroed(sizeof *delayed);
  if (!delayed)
    return NVME_INTERNAL;
  *delayed = (struct nvme_delayed){ctrl->delayed, due, sqid, cid, status, result};
  ctrl->delayed = delayed;
  return NVME_NO_ANSWER;
}

int nvme_complete_delayed(struct nvme_ctrl *ctrl) {
  uint64_t now = nvme_now();
  int n = 0;
  for (struct nvme_delayed **at = &ctrl->delayed; *at;) {
    struct nvme_delayed *delayed = *at;
    if (delayed->due > now || !nvme_can_complete(ctrl, delayed->sqid)) {
      n += delayed->due > now && delayed->due - now < SOON_NS;
      at = &delayed->next;
      continue;
    }
    *at = delayed->next;
    nvme_complete(ctrl, delayed->sqid, delayed->cid, delayed->status, delayed->result);
    alloc_free(delayed);
    n++;
  }
  return n;
}

int nvme_abort_delayed(struct nvme_ctrl *ctrl, uint16_t sqid, uint16_t cid) {
  for (struct nvme_delayed **at = &ctrl->delayed; *at; at = &(*at)->next) {
    struct nvme_delayed *delayed = *at;
    if (delayed->sqid != sqid || delayed->cid != cid || !nvme_can_complete(ctrl, sqid))
      continue;
    *at = delayed->next;
    nvme_complete(ctrl, sqid, cid, NVME_ABORTED, 0);
    alloc_free(delayed);
    return 1;
  }
  return 0;
}

void nvme_drop_delayed(struct nvme_ctrl *ctrl, int sqid) {
  for (struct nvme_delayed **at = &ctrl->delayed; *at;) {
    struct nvme_delayed *delayed = *at;
    if (sqid >= 0 && delayed->sqid != sqid) {
      at = &delayed->next;
      continue;
    }
    *at = delayed->next;
    if (sqid >= 0)
      nvme_complete(ctrl, delayed->sqid, delayed->cid, NVME_ABORTED_SQ_DELETED, 0);
    alloc_free(delayed);
  }
}
