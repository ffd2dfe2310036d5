/* Admin commands (5); identify, features and log pages have rooms of their own. */
#include "nvme.h"

enum admin_opcode {
  DELETE_SQ = 0x00,
  CREATE_SQ = 0x01,
  GET_LOG = 0x02,
  DELETE_CQ = 0x04,
  CREATE_CQ = 0x05,
  IDENTIFY = 0x06,
  ABORT = 0x08,
  SET_FEATURES = 0x09,
  GET_FEATURES = 0x0a,
  EVENT_REQUEST = 0x0c,
  KEEP_ALIVE = 0x18,
  FORMAT = 0x80,
};

/* Commands are carried out as they are fetched: only one that was put off, or that waits for a page,
 * can be aborted. */
static uint16_t abort_command(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd,
                              uint32_t *result) {
  uint16_t sqid = (uint16_t)cmd->cdw10, cid = (uint16_t)(cmd->cdw10 >> 16);
  *result = 1; /* not aborted */
  if (sqid > ctrl->nvme->max_queues || !ctrl->sqs[sqid].used)
    return NVME_INVALID_FIELD | NVME_DNR;
  for (unsigned i = 0; !sqid && i < ctrl->n_aers; i++)
    if (ctrl->aers[i] == cid && nvme_can_complete(ctrl, 0)) {
      ctrl->aers[i] = ctrl->aers[--ctrl->n_aers];
      nvme_complete(ctrl, 0, cid, NVME_ABORTED, 0);
      *result = 0;
      return 0;
    }
  if (nvme_abort_delayed(ctrl, sqid, cid) || nvme_abort_waiting(ctrl, sqid, cid))
    *result = 0;
  return 0;
}

static uint16_t format_one(struct nvme_ctrl *ctrl, struct nvme_ns *ns, unsigned lba_lg2) {
  if (ns->read_only)
    return NVME_WRITE_PROTECTED | NVME_DNR;
  if (ns->size & ((1ull << lba_lg2) - 1))
    return NVME_INVALID_FORMAT | NVME_DNR;
  if (nvme_ns_zero(ns, 0, ns->size))
    return NVME_INTERNAL;
  if (ns->lba_lg2 != lba_lg2)
    nvme_namespace_changed(ctrl, ns->id);
  ns->lba_lg2 = lba_lg2;
  return 0;
}

/* 5.23. No metadata, no protection information; either way of erasing leaves zeros. */
static uint16_t format(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd) {
  struct nvme *nvme = ctrl->nvme;
  unsigned lbaf = cmd->cdw10 & 15, erase = cmd->cdw10 >> 9 & 7;
  uint16_t status = NVME_INVALID_NAMESPACE | NVME_DNR;
  if (lbaf > 1)
    return NVME_INVALID_FORMAT | NVME_DNR;
  if (cmd->cdw10 & 0x1f0 || erase > 1)
    return NVME_INVALID_FIELD | NVME_DNR;
  for (uint32_t i = 0; i < nvme->n_namespaces; i++) {
    struct nvme_ns *ns = &nvme->namespaces[i];
    if (cmd->nsid != ns->id && cmd->nsid != NVME_ALL)
      continue;
    if ((status = format_one(ctrl, ns, lbaf ? 12 : 9)))
      break;
  }
  return status;
}

uint16_t nvme_admin(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, uint32_t *result) {
  if (cmd->flags) /* neither fused nor, on PCIe, with an SGL */
    return NVME_INVALID_FIELD | NVME_DNR;
  switch (cmd->opcode) {
  case DELETE_SQ:
    return nvme_delete_sq(ctrl, cmd);
  case CREATE_SQ:
    return nvme_create_sq(ctrl, cmd);
  case DELETE_CQ:
    return nvme_delete_cq(ctrl, cmd);
  case CREATE_CQ:
    return nvme_create_cq(ctrl, cmd);
  case GET_LOG:
    return nvme_get_log(ctrl, cmd);
  case IDENTIFY:
    return nvme_identify(ctrl, cmd);
  case ABORT:
    return abort_command(ctrl, cmd, result);
  case SET_FEATURES:
    return nvme_set_feature(ctrl, cmd, result);
  case GET_FEATURES:
    return nvme_get_feature(ctrl, cmd, result);
  case EVENT_REQUEST:
    return nvme_event_request(ctrl, cmd);
  case KEEP_ALIVE:
    nvme_keep_alive(ctrl);
    return 0;
  case FORMAT:
    return format(ctrl, cmd);
  default:
    return NVME_INVALID_OPCODE | NVME_DNR;
  }
}
