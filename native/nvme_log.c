/* Log pages (5.14.1 of what there is: errors, health, firmware, changed namespaces, commands). */
#include <string.h>

#include "nvme.h"

enum log_page { ERRORS = 1, SMART = 2, FIRMWARE = 3, CHANGED = 4, COMMANDS = 5 };

_Static_assert(sizeof(struct nvme_error) == 64, "5.14.1.1");

uint8_t nvme_smart_warning(const struct nvme_ctrl *ctrl) {
  uint16_t now = ctrl->nvme->temperature;
  return now >= ctrl->features.over_threshold || now <= ctrl->features.under_threshold ? 2 : 0;
}

void nvme_log_error(struct nvme_ctrl *ctrl, uint16_t sqid, const struct nvme_cmd *cmd,
                    uint16_t status) {
  memmove(ctrl->errors + 1, ctrl->errors, (NVME_N_ERRORS - 1) * sizeof *ctrl->errors);
  ctrl->errors[0] = (struct nvme_error){
      .count = ++ctrl->nvme->n_errors,
      .sqid = sqid,
      .cid = cmd->cid,
      .status = (uint16_t)(status << 1),
      .location = 0xffff,
      .lba = sqid ? (uint64_t)cmd->cdw11 << 32 | cmd->cdw10 : 0,
      .nsid = cmd->nsid,
  };
}

static void put64(unsigned char *data, unsigned at, uint64_t value) {
  memcpy(data + at, &value, sizeof value);
}

static size_t smart(const struct nvme_ctrl *ctrl, unsigned char *data) {
  const struct nvme *nvme = ctrl->nvme;
  data[0] = nvme_smart_warning(ctrl);
  memcpy(data + 1, &nvme->temperature, 2);
  data[3] = 100; /* spare, % */
  data[4] = 10;  /* which is low below this */
  put64(data, 32, (nvme->sectors_read + 999) / 1000);
  put64(data, 48, (nvme->sectors_written + 999) / 1000);
  put64(data, 64, nvme->reads);
  put64(data, 80, nvme->writes);
  put64(data, 112, nvme->power_cycles);
  put64(data, 128, (nvme_now() - nvme->started_ns) / 3600000000000ull);
  put64(data, 144, nvme->unsafe_shutdowns);
  put64(data, 160, nvme->media_errors);
  put64(data, 176, nvme->n_errors);
  return 512;
}

static size_t firmware(const struct nvme_ctrl *ctrl, unsigned char *data) {
  data[0] = 1; /* the slot in use */
  memset(data + 8, ' ', 8);
  memcpy(data + 8, ctrl->nvme->firmware, strlen(ctrl->nvme->firmware));
  return 512;
}

static size_t changed(struct nvme_ctrl *ctrl, unsigned char *data) {
  memcpy(data, ctrl->changed, ctrl->n_changed * sizeof *ctrl->changed);
  return 4096;
}

/* Supported, and what else a command changes: content, capabilities of namespaces. */
static size_t commands(unsigned char *data) {
  static const struct {
    uint16_t at;
    uint8_t effects;
  } list[] = {
      {0x00, 0x1},  {0x01, 0x1},  {0x02, 0x1},  {0x04, 0x1},  {0x05, 0x1},  {0x06, 0x1},
      {0x08, 0x1},  {0x09, 0x1},  {0x0a, 0x1},  {0x0c, 0x1},  {0x18, 0x1},  {0x80, 0x7},
      {0x100, 0x1}, {0x101, 0x3}, {0x102, 0x1}, {0x105, 0x1}, {0x108, 0x3}, {0x109, 0x3},
      {0x10c, 0x1},
  };
  for (size_t i = 0; i < sizeof list / sizeof *list; i++)
    data[4 * list[i].at] = list[i].effects;
  return 4096;
}

/* The page, as long as it is; 0: there is none. */
static size_t fill(struct nvme_ctrl *ctrl, uint8_t page, unsigned char *data) {
  switch (page) {
  case ERRORS:
    memcpy(data, ctrl->errors, sizeof ctrl->errors);
    return sizeof ctrl->errors;
  case SMART:
    return smart(ctrl, data);
  case FIRMWARE:
    return firmware(ctrl, data);
  case CHANGED:
    return changed(ctrl, data);
  case COMMANDS:
    return commands(data);
  default:
    return 0;
  }
}

uint16_t nvme_get_log(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd) {
  uint8_t page = (uint8_t)cmd->cdw10;
  uint64_t length = ((cmd->cdw10 >> 16 | (uint64_t)(cmd->cdw11 & 0xffff) << 16) + 1) * 4;
  uint64_t offset = (uint64_t)cmd->cdw13 << 32 | cmd->cdw12;
  memset(ctrl->buffer, 0, 4096);
  size_t there = fill(ctrl, page, ctrl->buffer);
  if (!there)
    return NVME_LOG_PAGE | NVME_DNR;
  if (offset & 3 || offset > there)
    return NVME_INVALID_FIELD | NVME_DNR;
  if (length > there - offset)
    length = there - offset;
  uint16_t status = nvme_to_client(ctrl, cmd, ctrl->buffer + offset, length);
  if (status || cmd->cdw10 >> 15 & 1) /* retain the event */
    return status;
  if (page == CHANGED)
    ctrl->n_changed = 0;
  nvme_event_read(ctrl, page);
  return 0;
}
