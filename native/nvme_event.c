/* Asynchronous events: what a controller says without being asked (5.2). */
#include "nvme.h"

#define TEMPERATURE 1 /* SMART: the info of the event */
#define NAMESPACE_CHANGED 0

void nvme_events_deliver(struct nvme_ctrl *ctrl) {
  for (unsigned type = 0; type < 8; type++) {
    if (!ctrl->events[type] || !ctrl->n_aers || ctrl->masked_events >> type & 1)
      continue;
    if (!nvme_can_complete(ctrl, 0))
      return;
    uint32_t result = ctrl->events[type] - 1;
    ctrl->events[type] = 0;
    ctrl->masked_events |= 1u << type;
    nvme_complete(ctrl, 0, ctrl->aers[--ctrl->n_aers], 0, result);
  }
}

void nvme_event(struct nvme_ctrl *ctrl, unsigned type, unsigned info, unsigned page) {
  /* Of a type that was reported and not read yet nothing is kept: its log page says all. */
  if (ctrl->masked_events >> type & 1)
    return;
  ctrl->events[type] = (type | info << 8 | page << 16) + 1;
  nvme_events_deliver(ctrl);
}

void nvme_event_read(struct nvme_ctrl *ctrl, unsigned page) {
  static const uint8_t types[] = {[1] = NVME_EVENT_ERROR, [2] = NVME_EVENT_SMART,
                                  [4] = NVME_EVENT_NOTICE};
  if (page < sizeof types)
    ctrl->masked_events &= ~(1u << types[page]);
  nvme_events_deliver(ctrl);
}

uint16_t nvme_event_request(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd) {
  if (ctrl->n_aers == NVME_N_AERS)
    return NVME_AER_LIMIT | NVME_DNR;
  ctrl->aers[ctrl->n_aers++] = cmd->cid;
  nvme_events_deliver(ctrl);
  return NVME_NO_ANSWER;
}

void nvme_check_temperature(struct nvme_ctrl *ctrl) {
  if (nvme_smart_warning(ctrl) & ctrl->features.events & 2)
    nvme_event(ctrl, NVME_EVENT_SMART, TEMPERATURE, 2);
}

void nvme_namespace_changed(struct nvme_ctrl *ctrl, uint32_t nsid) {
  for (unsigned i = 0; i < ctrl->n_changed; i++)
    if (ctrl->changed[i] == nsid)
      return;
  if (ctrl->n_changed < sizeof ctrl->changed / sizeof *ctrl->changed)
    ctrl->changed[ctrl->n_changed++] = nsid;
  if (ctrl->features.events & 0x100)
    nvme_event(ctrl, NVME_EVENT_NOTICE, NAMESPACE_CHANGED, 4);
}
