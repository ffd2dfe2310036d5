/* Features: what a client may set and ask (5.14, 5.21). None survives a controller reset. */
#include <string.h>

#include "nvme.h"

enum feature {
  ARBITRATION = 0x01,
  POWER = 0x02,
  TEMPERATURE = 0x04,
  ERROR_RECOVERY = 0x05,
  WRITE_CACHE = 0x06,
  QUEUES = 0x07,
  COALESCING = 0x08,
  VECTOR = 0x09,
  ATOMICITY = 0x0a,
  EVENTS = 0x0b,
  TIMESTAMP = 0x0e,
  KEEP_ALIVE = 0x0f,
  HOST_BEHAVIOR = 0x16,
  COMMAND_SETS = 0x19,
  HOST_ID = 0x81,
};

enum { SELECT_CURRENT, SELECT_DEFAULT, SELECT_SAVED, SELECT_CAPABILITIES };

#define CHANGEABLE 4
#define SAVE (1u << 31)
#define CURRENT_TIME 0xffffffffffffull
#define THRESHOLD 343 /* kelvin */

void nvme_features_reset(struct nvme_ctrl *ctrl) {
  ctrl->features = (struct nvme_features){
      .arbitration = 6,
      .write_cache = 1,
      .over_threshold = THRESHOLD,
      .timestamp_set_ns = nvme_now(),
  };
}

static int is_known(uint8_t feature) {
  switch (feature) {
  case ARBITRATION:
  case POWER:
  case TEMPERATURE:
  case ERROR_RECOVERY:
  case WRITE_CACHE:
  case QUEUES:
  case COALESCING:
  case VECTOR:
  case ATOMICITY:
  case EVENTS:
  case TIMESTAMP:
  case KEEP_ALIVE:
  case HOST_BEHAVIOR:
  case COMMAND_SETS:
  case HOST_ID:
    return 1;
  default:
    return 0;
  }
}

/* Of features that are one dword: where it is; NULL: it is none of these. */
static uint32_t *dword_of(struct nvme_features *features, uint8_t feature) {
  switch (feature) {
  case ARBITRATION:
    return &features->arbitration;
  case POWER:
    return &features->power;
  case ERROR_RECOVERY:
    return &features->error_recovery;
  case WRITE_CACHE:
    return &features->write_cache;
  case COALESCING:
    return &features->coalescing;
  case ATOMICITY:
    return &features->atomicity;
  case EVENTS:
    return &features->events;
  case KEEP_ALIVE:
    return &features->keep_alive;
  default:
    return NULL;
  }
}

/* ---- temperature: sensor 0 is the composite one, under and over thresholds --------------------- */

static uint16_t *threshold_of(struct nvme_ctrl *ctrl, uint32_t dw11) {
  if (dw11 >> 16 & 15 || (dw11 >> 20 & 3) > 1)
    return NULL;
  return dw11 >> 20 & 3 ? &ctrl->features.under_threshold : &ctrl->features.over_threshold;
}

/* All sensors at once (15) are the one there is. */
static uint16_t set_threshold(struct nvme_ctrl *ctrl, uint32_t dw11) {
  if ((dw11 >> 16 & 15) == 15)
    dw11 &= ~0xf0000u;
  uint16_t *threshold = threshold_of(ctrl, dw11);
  if (!threshold)
    return NVME_INVALID_FIELD | NVME_DNR;
  *threshold = (uint16_t)dw11;
  nvme_check_temperature(ctrl);
  return 0;
}

/* ---- those with data -------------------------------------------------------------------------- */

static uint16_t get_timestamp(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd) {
  const struct nvme_features *features = &ctrl->features;
  uint64_t passed = (nvme_now() - features->timestamp_set_ns) / 1000000;
  uint64_t value = ((features->timestamp_ms + passed) & CURRENT_TIME) |
                   (uint64_t)features->timestamp_origin << 49;
  return nvme_to_client(ctrl, cmd, &value, sizeof value);
}

static uint16_t set_timestamp(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd) {
  uint64_t value;
  uint16_t status = nvme_from_client(ctrl, cmd, &value, sizeof value);
  if (status)
    return status;
  ctrl->features.timestamp_ms = value & CURRENT_TIME;
  ctrl->features.timestamp_set_ns = nvme_now();
  ctrl->features.timestamp_origin = 1;
  return 0;
}

/* 64 or, extended, 128 bits. */
static uint16_t move_host_id(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, int set) {
  size_t length = cmd->cdw11 & 1 ? 16 : 8;
  uint8_t id[16] = {0};
  if (!set)
    return nvme_to_client(ctrl, cmd, ctrl->features.host_id, length);
  uint16_t status = nvme_from_client(ctrl, cmd, id, length);
  if (!status)
    memcpy(ctrl->features.host_id, id, sizeof id);
  return status;
}

static uint16_t move_host_behavior(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, int set) {
  unsigned char *data = ctrl->buffer;
  memset(data, 0, 512);
  data[0] = ctrl->features.host_behavior;
  if (!set)
    return nvme_to_client(ctrl, cmd, data, 512);
  uint16_t status = nvme_from_client(ctrl, cmd, data, 512);
  if (!status && data[0] > 1)
    return NVME_INVALID_FIELD | NVME_DNR;
  if (!status)
    ctrl->features.host_behavior = data[0];
  return status;
}

/* ---- get -------------------------------------------------------------------------------------- */

static uint32_t n_queues(const struct nvme_ctrl *ctrl) {
  return (ctrl->nvme->max_queues - 1) | (ctrl->nvme->max_queues - 1) << 16;
}

static uint16_t get_vector(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, uint32_t *result) {
  uint32_t vector = cmd->cdw11 & 0xffff;
  if (vector >= ctrl->nvme->n_vectors)
    return NVME_INVALID_FIELD | NVME_DNR;
  *result = vector;
  for (unsigned i = 0; i <= ctrl->nvme->max_queues; i++)
    if (ctrl->cqs[i].used && ctrl->cqs[i].vector == vector && ctrl->cqs[i].no_coalescing)
      *result |= 1u << 16;
  if (!vector) /* the admin queue's, which never waits */
    *result |= 1u << 16;
  return 0;
}

static uint16_t get_current(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd,
                            uint32_t *result) {
  uint8_t feature = (uint8_t)cmd->cdw10;
  const uint32_t *dword = dword_of(&ctrl->features, feature);
  const uint16_t *threshold;
  if (dword) {
    *result = *dword;
    return 0;
  }
  switch (feature) {
  case TEMPERATURE:
    if (!(threshold = threshold_of(ctrl, cmd->cdw11)))
      return NVME_INVALID_FIELD | NVME_DNR;
    *result = *threshold;
    return 0;
  case QUEUES:
    *result = n_queues(ctrl);
    return 0;
  case VECTOR:
    return get_vector(ctrl, cmd, result);
  case TIMESTAMP:
    return get_timestamp(ctrl, cmd);
  case HOST_BEHAVIOR:
    return move_host_behavior(ctrl, cmd, 0);
  case HOST_ID:
    return move_host_id(ctrl, cmd, 0);
  default: /* COMMAND_SETS: combination 0, the only one */
    return 0;
  }
}

/* The values that a reset leaves, which are also the saved ones: nothing can be saved. */
static uint16_t get_default(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd,
                            uint32_t *result) {
  struct nvme_features now = ctrl->features;
  nvme_features_reset(ctrl);
  uint16_t status = get_current(ctrl, cmd, result);
  ctrl->features = now;
  return status;
}

uint16_t nvme_get_feature(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, uint32_t *result) {
  unsigned select = cmd->cdw10 >> 8 & 7;
  if (!is_known((uint8_t)cmd->cdw10))
    return NVME_INVALID_FIELD | NVME_DNR;
  switch (select) {
  case SELECT_CURRENT:
    return get_current(ctrl, cmd, result);
  case SELECT_DEFAULT:
  case SELECT_SAVED:
    return get_default(ctrl, cmd, result);
  case SELECT_CAPABILITIES:
    *result = CHANGEABLE;
    return 0;
  default:
    return NVME_INVALID_FIELD | NVME_DNR;
  }
}

/* ---- set -------------------------------------------------------------------------------------- */

static uint16_t set_queues(struct nvme_ctrl *ctrl, uint32_t dw11, uint32_t *result) {
  if (ctrl->io_queues_made)
    return NVME_SEQUENCE | NVME_DNR;
  if ((dw11 & 0xffff) == 0xffff || dw11 >> 16 == 0xffff)
    return NVME_INVALID_FIELD | NVME_DNR;
  *result = n_queues(ctrl);
  return 0;
}

static uint16_t set_vector(struct nvme_ctrl *ctrl, uint32_t dw11) {
  uint32_t vector = dw11 & 0xffff;
  int found = 0;
  for (unsigned i = 0; i <= ctrl->nvme->max_queues; i++)
    if (ctrl->cqs[i].used && ctrl->cqs[i].vector == vector) {
      ctrl->cqs[i].no_coalescing = dw11 >> 16 & 1;
      found = 1;
    }
  return found ? 0 : NVME_INVALID_FIELD | NVME_DNR;
}

void nvme_keep_alive(struct nvme_ctrl *ctrl) { ctrl->kept_alive_ns = nvme_now(); }

/* 7.12: once it is set, the client has to say that it is there. */
void nvme_check_alive(struct nvme_ctrl *ctrl) {
  const struct nvme_cmd none = {.cid = 0xffff, .nsid = NVME_ALL};
  uint64_t n_units = (ctrl->features.keep_alive + NVME_KEEP_ALIVE_UNIT_MS - 1ull) /
                     NVME_KEEP_ALIVE_UNIT_MS;
  uint64_t patience_ns = n_units * NVME_KEEP_ALIVE_UNIT_MS * 1000000;
  if (!patience_ns || ctrl->csts & NVME_CSTS_SHST || nvme_now() - ctrl->kept_alive_ns < patience_ns)
    return;
  nvme_log_error(ctrl, 0, &none, NVME_KEEP_ALIVE_EXPIRED);
  nvme_fail(ctrl, "fatal: the client did not keep the controller alive");
}

static uint16_t set_dword(struct nvme_ctrl *ctrl, uint8_t feature, uint32_t value) {
  if (feature == POWER && value & 31) /* there is power state 0 */
    return NVME_INVALID_FIELD | NVME_DNR;
  if (feature == WRITE_CACHE && !(value & 1) && ctrl->features.write_cache & 1)
    for (uint32_t i = 0; i < ctrl->nvme->n_namespaces; i++)
      nvme_ns_flush(&ctrl->nvme->namespaces[i]);
  *dword_of(&ctrl->features, feature) = value;
  if (feature == KEEP_ALIVE)
    nvme_keep_alive(ctrl);
  if (feature == EVENTS)
    nvme_check_temperature(ctrl);
  return 0;
}

uint16_t nvme_set_feature(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, uint32_t *result) {
  uint8_t feature = (uint8_t)cmd->cdw10;
  if (!is_known(feature))
    return NVME_INVALID_FIELD | NVME_DNR;
  if (cmd->cdw10 & SAVE)
    return NVME_NOT_SAVEABLE | NVME_DNR;
  if (cmd->nsid && cmd->nsid != NVME_ALL)
    return (nvme_find_ns(ctrl->nvme, cmd->nsid) ? NVME_NOT_NS_SPECIFIC : NVME_INVALID_NAMESPACE) |
           NVME_DNR;
  if (dword_of(&ctrl->features, feature))
    return set_dword(ctrl, feature, cmd->cdw11);
  switch (feature) {
  case TEMPERATURE:
    return set_threshold(ctrl, cmd->cdw11);
  case QUEUES:
    return set_queues(ctrl, cmd->cdw11, result);
  case VECTOR:
    return set_vector(ctrl, cmd->cdw11);
  case TIMESTAMP:
    return set_timestamp(ctrl, cmd);
  case HOST_BEHAVIOR:
    return move_host_behavior(ctrl, cmd, 1);
  case HOST_ID:
    return move_host_id(ctrl, cmd, 1);
  default: /* COMMAND_SETS: combination 0 */
    return cmd->cdw11 & 0x1ff ? NVME_COMMAND_SET | NVME_DNR : 0;
  }
}
