/* I/O commands: the NVM command set (6). */
#include <string.h>

#include "nvme.h"

enum io_opcode {
  FLUSH = 0x00,
  WRITE = 0x01,
  READ = 0x02,
  COMPARE = 0x05,
  WRITE_ZEROES = 0x08,
  DATASET = 0x09,
  VERIFY = 0x0c,
};

#define AHEAD 512u /* bytes of a command that are fetched during the one before it */
#define CACHE_LINE 64u

#define FORCE_UNIT_ACCESS (1u << 30)
#define DEALLOCATE 4u

struct range {
  uint64_t offset, length; /* bytes */
};

/* The blocks that a command names, which must be there. */
static uint16_t range_of(const struct nvme_ns *ns, uint64_t lba, uint64_t n, struct range *out) {
  uint64_t n_blocks = ns->size >> ns->lba_lg2;
  if (lba >= n_blocks || n > n_blocks - lba)
    return NVME_LBA_RANGE | NVME_DNR;
  *out = (struct range){lba << ns->lba_lg2, n << ns->lba_lg2};
  return 0;
}

static uint64_t lba_of(const struct nvme_cmd *cmd) {
  return (uint64_t)cmd->cdw11 << 32 | cmd->cdw10;
}

static uint16_t range_of_cmd(const struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd,
                             const struct nvme_ns *ns, int has_data, struct range *out) {
  uint64_t n = (cmd->cdw12 & 0xffff) + 1ull;
  if (has_data && n << ns->lba_lg2 > nvme_max_transfer(ctrl->nvme))
    return NVME_INVALID_FIELD | NVME_DNR;
  return range_of(ns, lba_of(cmd), n, out);
}

static uint16_t media_error(struct nvme_ctrl *ctrl, uint16_t status) {
  ctrl->nvme->media_errors++;
  return status;
}

/* What was written is there to stay, if the command or the feature says so. */
static uint16_t make_durable(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd,
                             struct nvme_ns *ns) {
  if (ctrl->features.write_cache & 1 && !(cmd->cdw12 & FORCE_UNIT_ACCESS))
    return 0;
  return nvme_ns_flush(ns) ? media_error(ctrl, NVME_WRITE_FAULT) : 0;
}

static uint16_t read_blocks(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, struct nvme_ns *ns,
                            const struct range *range) {
  const unsigned char *data = nvme_ns_bytes(ctrl->nvme, ns, range->offset, range->length, 0);
  if (!data)
    return media_error(ctrl, NVME_READ_ERROR);
  uint16_t status = nvme_to_client(ctrl, cmd, data, range->length);
  if (status != NVME_NO_ANSWER) {
    ctrl->nvme->reads++;
    ctrl->nvme->sectors_read += range->length >> 9;
  }
  return status;
}

static uint16_t write_blocks(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd,
                             struct nvme_ns *ns, const struct range *range) {
  unsigned char *data = nvme_ns_bytes(ctrl->nvme, ns, range->offset, range->length, 1);
  uint16_t status;
  if (!data)
    return media_error(ctrl, NVME_WRITE_FAULT);
  status = nvme_from_client(ctrl, cmd, data, range->length);
  if (status != NVME_NO_ANSWER) {
    ctrl->nvme->writes++;
    ctrl->nvme->sectors_written += range->length >> 9;
  }
  return status ? status : make_durable(ctrl, cmd, ns);
}

static uint16_t compare(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, struct nvme_ns *ns,
                        const struct range *range) {
  const unsigned char *data = nvme_ns_bytes(ctrl->nvme, ns, range->offset, range->length, 0);
  uint16_t status;
  if (!data)
    return media_error(ctrl, NVME_READ_ERROR);
  if ((status = nvme_from_client(ctrl, cmd, ctrl->buffer, range->length)))
    return status;
  return memcmp(data, ctrl->buffer, range->length) ? NVME_COMPARE | NVME_DNR : 0;
}

static uint16_t write_zeroes(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd,
                             struct nvme_ns *ns, const struct range *range) {
  if (nvme_ns_zero(ns, range->offset, range->length))
    return media_error(ctrl, NVME_WRITE_FAULT);
  return make_durable(ctrl, cmd, ns);
}

static uint16_t manage_dataset(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd,
                               struct nvme_ns *ns) {
  struct {
    uint32_t attributes, n_blocks;
    uint64_t lba;
  } ranges[256];
  unsigned n = (cmd->cdw10 & 0xff) + 1;
  uint16_t status = nvme_from_client(ctrl, cmd, ranges, n * sizeof *ranges);
  for (unsigned i = 0; i < n && !status; i++) {
    struct range range;
    status = range_of(ns, ranges[i].lba, ranges[i].n_blocks, &range);
    if (!status && cmd->cdw11 & DEALLOCATE && range.length &&
        nvme_ns_zero(ns, range.offset, range.length))
      status = media_error(ctrl, NVME_WRITE_FAULT);
  }
  return status;
}

static uint16_t flush(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd) {
  struct nvme *nvme = ctrl->nvme;
  for (uint32_t i = 0; i < nvme->n_namespaces; i++) {
    struct nvme_ns *ns = &nvme->namespaces[i];
    if ((cmd->nsid == NVME_ALL || cmd->nsid == ns->id) && nvme_ns_flush(ns))
      return media_error(ctrl, NVME_WRITE_FAULT);
  }
  return cmd->nsid == NVME_ALL || nvme_find_ns(nvme, cmd->nsid)
             ? 0
             : NVME_INVALID_NAMESPACE | NVME_DNR;
}

static int writes(unsigned opcode) {
  return opcode == WRITE || opcode == WRITE_ZEROES || opcode == DATASET;
}

/* The processor follows a copy through a page, but not into it: the beginning is on its way before
 * its turn comes, and so is the translation of its address. */
void nvme_io_soon(const struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd) {
  const struct nvme_ns *ns = nvme_find_ns(ctrl->nvme, cmd->nsid);
  struct range range;
  if (!ns || ns->backing == NVME_NOTHING || range_of(ns, lba_of(cmd), AHEAD >> ns->lba_lg2, &range))
    return;
  const unsigned char *memory = ns->memory + range.offset;
  for (unsigned at = 0; at < AHEAD && cmd->opcode == READ; at += CACHE_LINE)
    __builtin_prefetch(memory + at);
  for (unsigned at = 0; at < AHEAD && cmd->opcode == WRITE; at += CACHE_LINE)
    __builtin_prefetch(memory + at, 1);
}

uint16_t nvme_io(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, uint32_t *result) {
  struct nvme_ns *ns = nvme_find_ns(ctrl->nvme, cmd->nsid);
  struct range range;
  uint16_t status;
  (void)result;
  if (cmd->flags & 3) /* fused */
    return NVME_INVALID_FIELD | NVME_DNR;
  if (cmd->opcode == FLUSH)
    return flush(ctrl, cmd);
  if (!ns)
    return NVME_INVALID_NAMESPACE | NVME_DNR;
  if (ns->read_only && writes(cmd->opcode))
    return NVME_WRITE_PROTECTED | NVME_DNR;
  switch (cmd->opcode) {
  case READ:
    status = range_of_cmd(ctrl, cmd, ns, 1, &range);
    return status ? status : read_blocks(ctrl, cmd, ns, &range);
  case WRITE:
    status = range_of_cmd(ctrl, cmd, ns, 1, &range);
    return status ? status : write_blocks(ctrl, cmd, ns, &range);
  case COMPARE:
    status = range_of_cmd(ctrl, cmd, ns, 1, &range);
    return status ? status : compare(ctrl, cmd, ns, &range);
  case WRITE_ZEROES:
    status = range_of_cmd(ctrl, cmd, ns, 0, &range);
    return status ? status : write_zeroes(ctrl, cmd, ns, &range);
  case VERIFY:
    status = range_of_cmd(ctrl, cmd, ns, 0, &range);
    if (!status && !nvme_ns_bytes(ctrl->nvme, ns, range.offset, range.length, 0))
      status = media_error(ctrl, NVME_READ_ERROR);
    return status;
  case DATASET:
    return manage_dataset(ctrl, cmd, ns);
  default:
    return NVME_INVALID_OPCODE | NVME_DNR;
  }
}
