/*
 * Where the data of a command is in client memory: PRPs and SGLs (4.3, 4.4). All of a list is read
 * and checked before any data moves; what lies side by side becomes one span.
 */
#include <errno.h>
#include <string.h>

#include "nvme.h"

#define MAX_SEGMENTS 64

enum { SGL_DATA, SGL_BIT_BUCKET, SGL_SEGMENT, SGL_LAST_SEGMENT };

struct sgl {
  uint64_t address;
  uint32_t length;
  uint8_t reserved[3], type;
};

/* No place: bits that go into the bucket. */
#define BUCKET UINT64_MAX

static int add(struct nvme_ctrl *ctrl, uint64_t iova, uint64_t length) {
  struct nvme_span *last = ctrl->n_spans ? &ctrl->spans[ctrl->n_spans - 1] : NULL;
  if (last && iova != BUCKET && last->iova != BUCKET && last->iova + last->length == iova) {
    last->length += length;
    return 0;
  }
  if (ctrl->n_spans == NVME_MAX_SPANS)
    return -ENOSPC;
  ctrl->spans[ctrl->n_spans++] = (struct nvme_span){iova, length};
  return 0;
}

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* What came of a DMA for the command under way. */
static uint16_t status_of(int err) {
  if (err == -EINPROGRESS)
    return NVME_NO_ANSWER;
  return err ? NVME_DATA_TRANSFER : 0;
}

static uint16_t read_client(struct nvme_ctrl *ctrl, uint64_t iova, void *buf, size_t length) {
  return status_of(iommufs_dma_read_or_ask(ctrl->device, iova, buf, length, &ctrl->request));
}

static uint16_t write_client(struct nvme_ctrl *ctrl, uint64_t iova, const void *buf,
                             size_t length) {
  return status_of(iommufs_dma_write_or_ask(ctrl->device, iova, buf, length, &ctrl->request));
}

/* ---- PRPs ------------------------------------------------------------------------------------- */

/* The list at `list`, whose last entry in a page leads on if there is more. */
static uint16_t map_prp_list(struct nvme_ctrl *ctrl, uint64_t list, uint64_t left) {
  uint64_t page = 1ull << ctrl->page_lg2, entries[512];
  if (list & 7)
    return NVME_PRP_OFFSET | NVME_DNR;
  for (int pages = 0; left; pages++) {
    if (pages == MAX_SEGMENTS) /* pages that hold nothing but the way to the next one */
      return NVME_INVALID_FIELD | NVME_DNR;
    uint64_t room = (page - (list & (page - 1))) / 8, needed = (left + page - 1) / page;
    uint64_t n = min_u64(min_u64(room, needed), 512), here = n;
    int leads_on = n == room && needed > room;
    uint16_t status = read_client(ctrl, list, entries, n * 8);
    if (status)
      return status;
    list += n * 8;
    if (leads_on) {
      here--;
      list = entries[here];
      if (list & 7)
        return NVME_PRP_OFFSET | NVME_DNR;
    }
    for (uint64_t i = 0; i < here; i++) {
      uint64_t length = min_u64(left, page);
      if (entries[i] & (page - 1))
        return NVME_PRP_OFFSET | NVME_DNR;
      if (add(ctrl, entries[i], length))
        return NVME_INVALID_FIELD | NVME_DNR;
      left -= length;
    }
  }
  return 0;
}

static uint16_t map_prps(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, uint64_t length) {
  uint64_t page = 1ull << ctrl->page_lg2;
  uint64_t first = min_u64(length, page - (cmd->prp1 & (page - 1)));
  if (cmd->prp1 & 3)
    return NVME_PRP_OFFSET | NVME_DNR;
  add(ctrl, cmd->prp1, first);
  length -= first;
  if (!length)
    return 0;
  if (length > page)
    return map_prp_list(ctrl, cmd->prp2, length);
  if (cmd->prp2 & (page - 1))
    return NVME_PRP_OFFSET | NVME_DNR;
  add(ctrl, cmd->prp2, length);
  return 0;
}

/* ---- SGLs ------------------------------------------------------------------------------------- */

static uint16_t map_data(struct nvme_ctrl *ctrl, const struct sgl *sgl, int to_client,
                         uint64_t *left) {
  uint64_t length = min_u64(sgl->length, *left);
  if (sgl->type & 15)
    return NVME_SGL_TYPE | NVME_DNR;
  if (sgl->type >> 4 == SGL_BIT_BUCKET && !to_client)
    return 0; /* 4.4: of no length in a transfer to the controller */
  if (sgl->type >> 4 > SGL_BIT_BUCKET)
    return NVME_SGL_TYPE | NVME_DNR;
  if (sgl->length > *left)
    return NVME_SGL_LENGTH | NVME_DNR;
  if (length && add(ctrl, sgl->type >> 4 == SGL_BIT_BUCKET ? BUCKET : sgl->address, length))
    return NVME_SGL_COUNT | NVME_DNR;
  *left -= length;
  return 0;
}

/* The descriptors of one segment; *next gets the segment after it, if its last one is of that type. */
static uint16_t map_segment(struct nvme_ctrl *ctrl, const struct sgl *segment, int to_client,
                            uint64_t *left, struct sgl *next) {
  struct sgl sgls[64];
  uint64_t n = segment->length / sizeof *sgls, done = 0;
  uint16_t status = 0;
  int last = segment->type >> 4 == SGL_LAST_SEGMENT;
  next->length = 0;
  if (segment->type & 15)
    return NVME_SGL_TYPE | NVME_DNR;
  if (!n || segment->length % sizeof *sgls)
    return NVME_SGL_SEGMENT | NVME_DNR;
  while (done < n && !status) {
    uint64_t part = min_u64(n - done, 64);
    if (done > NVME_MAX_SPANS)
      return NVME_SGL_COUNT | NVME_DNR;
    if ((status = read_client(ctrl, segment->address + done * sizeof *sgls, sgls,
                              part * sizeof *sgls)))
      return status;
    for (uint64_t i = 0; i < part && !status; i++, done++)
      if (done == n - 1 && !last && sgls[i].type >> 4 >= SGL_SEGMENT)
        *next = sgls[i];
      else
        status = map_data(ctrl, &sgls[i], to_client, left);
  }
  return status;
}

static uint16_t map_sgl(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, uint64_t length) {
  struct sgl sgl, next;
  int to_client = (cmd->opcode & 3) == 2;
  uint16_t status = 0;
  memcpy(&sgl, &cmd->prp1, sizeof sgl);
  if (sgl.type >> 4 < SGL_SEGMENT)
    status = map_data(ctrl, &sgl, to_client, &length);
  else if (sgl.type >> 4 > SGL_LAST_SEGMENT)
    return NVME_SGL_TYPE | NVME_DNR;
  else
    for (int i = 0; sgl.length && !status; i++, sgl = next) {
      if (i == MAX_SEGMENTS)
        return NVME_SGL_COUNT | NVME_DNR;
      status = map_segment(ctrl, &sgl, to_client, &length, &next);
    }
  if (!status && length)
    return NVME_SGL_LENGTH | NVME_DNR;
  return status;
}

/* ---- moving ----------------------------------------------------------------------------------- */

uint16_t nvme_map(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, size_t length) {
  ctrl->n_spans = 0;
  ctrl->n_moved += length;
  if (!length)
    return 0;
  if (cmd->flags >> 6 == 3)
    return NVME_INVALID_FIELD | NVME_DNR;
  return cmd->flags >> 6 ? map_sgl(ctrl, cmd, length) : map_prps(ctrl, cmd, length);
}

uint16_t nvme_to_client(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, const void *data,
                        size_t length) {
  const unsigned char *at = data;
  uint16_t status = nvme_map(ctrl, cmd, length);
  for (unsigned i = 0; i < ctrl->n_spans && !status; i++) {
    const struct nvme_span *span = &ctrl->spans[i];
    if (span->iova != BUCKET)
      status = write_client(ctrl, span->iova, at, span->length);
    at += span->length;
  }
  return status;
}

uint16_t nvme_from_client(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, void *data,
                          size_t length) {
  unsigned char *at = data;
  uint16_t status = nvme_map(ctrl, cmd, length);
  for (unsigned i = 0; i < ctrl->n_spans && !status; i++) {
    const struct nvme_span *span = &ctrl->spans[i];
    status = read_client(ctrl, span->iova, at, span->length);
    at += span->length;
  }
  return status;
}
