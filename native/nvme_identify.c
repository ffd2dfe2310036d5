/* Identify: what the controller and its namespaces say of themselves (5.15). */
#include <stdio.h>
#include <string.h>

#include "nvme.h"

#define SIZE 4096

enum cns {
  CNS_NS = 0x00,
  CNS_CTRL = 0x01,
  CNS_ACTIVE = 0x02,
  CNS_DESCRIPTORS = 0x03,
  CNS_NS_OF_SET = 0x05,
  CNS_CTRL_OF_SET = 0x06,
  CNS_ACTIVE_OF_SET = 0x07,
  CNS_ALLOCATED = 0x10,
  CNS_ALLOCATED_NS = 0x11,
  CNS_CTRLS_OF_NS = 0x12,
  CNS_CTRLS = 0x13,
  CNS_COMMAND_SETS = 0x1c,
};

#define CONTROLLER_ID 0
#define NVM_COMMAND_SET 0

static void put16(unsigned char *data, unsigned at, uint16_t value) {
  memcpy(data + at, &value, sizeof value);
}

static void put32(unsigned char *data, unsigned at, uint32_t value) {
  memcpy(data + at, &value, sizeof value);
}

static void put64(unsigned char *data, unsigned at, uint64_t value) {
  memcpy(data + at, &value, sizeof value);
}

static void put_text(unsigned char *data, unsigned at, const char *text, size_t size) {
  size_t length = strlen(text);
  memset(data + at, ' ', size);
  memcpy(data + at, text, length < size ? length : size);
}

static void identify_ctrl(const struct nvme *nvme, unsigned char *data) {
  put16(data, 0, nvme->vendor);
  put16(data, 2, nvme->subsystem_vendor);
  put_text(data, 4, nvme->serial, 20);
  put_text(data, 24, nvme->model, 40);
  put_text(data, 64, nvme->firmware, 8);
  data[72] = 6;                      /* recommended arbitration burst, lg2 */
  data[77] = (uint8_t)nvme->mdts;
  put16(data, 78, CONTROLLER_ID);
  put32(data, 80, NVME_VERSION);
  put32(data, 92, 0x100);            /* events: namespace attributes */
  put32(data, 96, 0x1);              /* host identifiers of 128 bits */
  data[111] = 1;                     /* an I/O controller */
  put16(data, 256, 0x2);             /* format NVM; no namespace management, no firmware */
  data[258] = 3;                     /* four aborts at a time */
  data[259] = NVME_N_AERS - 1;
  data[260] = 0x3;                   /* firmware: one slot, read-only */
  data[261] = 0x6;                   /* log pages: commands and effects, offsets */
  data[262] = NVME_N_ERRORS - 1;
  put16(data, 266, 343);             /* kelvin: a warning, critical */
  put16(data, 268, 373);
  put16(data, 320, NVME_KEEP_ALIVE_UNIT_MS / 100);
  data[512] = 0x66;                  /* queue entries, lg2: of 64 bytes */
  data[513] = 0x44;                  /* and of 16 */
  put32(data, 516, nvme->n_namespaces ? nvme->namespaces[nvme->n_namespaces - 1].id : 0);
  put16(data, 520, 0xdd);            /* compare, dataset, write zeroes, select, timestamp, verify */
  data[524] = 0;                     /* format is of a single namespace too */
  data[525] = 0x7;                   /* a write cache, which flush with all ones flushes too */
  put32(data, 536, 0x00010001);      /* SGLs, of any alignment, with bit buckets */
  snprintf((char *)data + 768, 256, "nqn.2026-11.iommufs:%s", nvme->serial);
  put16(data, 2048, 0x9c4);          /* power state 0: 25 W */
  put32(data, 2052, 0x10);
  put32(data, 2056, 0x4);
}

static void identify_ns(const struct nvme_ns *ns, unsigned char *data) {
  uint64_t n_blocks = ns->size >> ns->lba_lg2;
  put64(data, 0, n_blocks);
  put64(data, 8, n_blocks);
  put64(data, 16, n_blocks);
  data[25] = 1;                          /* formats, less one */
  data[26] = ns->lba_lg2 == 12;          /* which of them it has */
  data[33] = 0x9;                        /* deallocated blocks read as 0; write zeroes may do so */
  data[99] = (uint8_t)!!ns->read_only;   /* write protected */
  put64(data, 48, ns->size);
  data[128 + 2] = 9;
  data[132 + 2] = 12;
}

static void put_descriptor(unsigned char *data, unsigned *at, uint8_t type, const void *value,
                           uint8_t length) {
  data[*at] = type;
  data[*at + 1] = length;
  memcpy(data + *at + 4, value, length);
  *at += 4u + length;
}

/* A UUID that is made of the serial number and the id: the same for the same disk. */
static void make_uuid(const struct nvme *nvme, uint32_t nsid, unsigned char *uuid) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (unsigned round = 0; round < 16; round++) {
    for (const char *at = nvme->serial; *at; at++)
      hash = (hash ^ (unsigned char)*at) * 0x100000001b3u;
    hash = (hash ^ nsid ^ round << 16) * 0x100000001b3u;
    uuid[round] = (unsigned char)(hash >> 32);
  }
  uuid[6] = (uuid[6] & 0x0f) | 0x80; /* RFC 9562: version 8, of one's own making */
  uuid[8] = (uuid[8] & 0x3f) | 0x80;
}

static void describe_ns(const struct nvme *nvme, const struct nvme_ns *ns, unsigned char *data) {
  unsigned char uuid[16];
  uint8_t command_set = NVM_COMMAND_SET;
  unsigned at = 0;
  make_uuid(nvme, ns->id, uuid);
  put_descriptor(data, &at, 3, uuid, 16);
  put_descriptor(data, &at, 4, &command_set, 1);
}

/* Up to 1024 ids above nsid. */
static uint16_t list_namespaces(const struct nvme *nvme, uint32_t nsid, unsigned char *data) {
  unsigned n = 0;
  if (nsid >= 0xfffffffe)
    return NVME_INVALID_NAMESPACE | NVME_DNR;
  for (uint32_t i = 0; i < nvme->n_namespaces && n < SIZE / 4; i++)
    if (nvme->namespaces[i].id > nsid)
      put32(data, 4 * n++, nvme->namespaces[i].id);
  return 0;
}

static void list_controllers(uint32_t from, unsigned char *data) {
  if (from <= CONTROLLER_ID)
    put16(data, 0, 1), put16(data, 2, CONTROLLER_ID);
}

/* Of a namespace id that is in range but not in use there are zeros. What all have in common only
 * a controller with namespace management says. */
static uint16_t about_ns(struct nvme *nvme, const struct nvme_cmd *cmd, unsigned char *data) {
  struct nvme_ns *ns = nvme_find_ns(nvme, cmd->nsid);
  uint8_t cns = (uint8_t)cmd->cdw10;
  if (!cmd->nsid || !nvme->n_namespaces ||
      cmd->nsid > nvme->namespaces[nvme->n_namespaces - 1].id)
    return NVME_INVALID_NAMESPACE | NVME_DNR;
  if (!ns)
    return cns == CNS_DESCRIPTORS ? NVME_INVALID_NAMESPACE | NVME_DNR : 0;
  if (cns == CNS_DESCRIPTORS)
    describe_ns(nvme, ns, data);
  else if (cns == CNS_CTRLS_OF_NS)
    list_controllers(cmd->cdw10 >> 16, data);
  else if (cns != CNS_NS_OF_SET) /* the NVM command set adds nothing without metadata */
    identify_ns(ns, data);
  return 0;
}

/* Vectors of command sets that the controller supports together. */
static void list_command_sets(unsigned char *data) { put64(data, 0, 1 << NVM_COMMAND_SET); }

static uint16_t fill(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, unsigned char *data) {
  struct nvme *nvme = ctrl->nvme;
  uint8_t cns = (uint8_t)cmd->cdw10, set = (uint8_t)(cmd->cdw11 >> 24);
  int of_set = cns == CNS_NS_OF_SET || cns == CNS_CTRL_OF_SET || cns == CNS_ACTIVE_OF_SET;
  if (of_set && set != NVM_COMMAND_SET)
    return NVME_INVALID_FIELD | NVME_DNR;
  switch (cns) {
  case CNS_CTRL:
    identify_ctrl(nvme, data);
    return 0;
  case CNS_CTRL_OF_SET: /* limits of verify, write zeroes, …: none */
    return 0;
  case CNS_ACTIVE:
  case CNS_ACTIVE_OF_SET:
  case CNS_ALLOCATED:
    return list_namespaces(nvme, cmd->nsid, data);
  case CNS_NS:
  case CNS_NS_OF_SET:
  case CNS_DESCRIPTORS:
  case CNS_ALLOCATED_NS:
  case CNS_CTRLS_OF_NS:
    return about_ns(nvme, cmd, data);
  case CNS_CTRLS:
    list_controllers(cmd->cdw10 >> 16, data);
    return 0;
  case CNS_COMMAND_SETS:
    list_command_sets(data);
    return 0;
  default:
    return NVME_INVALID_FIELD | NVME_DNR;
  }
}

uint16_t nvme_identify(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd) {
  unsigned char *data = ctrl->buffer;
  memset(data, 0, SIZE);
  uint16_t status = fill(ctrl, cmd, data);
  return status ? status : nvme_to_client(ctrl, cmd, data, SIZE);
}
