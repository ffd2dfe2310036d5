/*
 * A small NVMe driver in userspace, through iommufd and a VFIO device file: one arena of memory that
 * the device can reach, an admin queue, pairs of I/O queues that are polled. Everything that goes
 * wrong ends the program with a line.
 */
#ifndef NVME_DRIVER_H
#define NVME_DRIVER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "iommufd.h"
#include "vfio.h"

#define NVME_PAGE 4096u
#define NVME_IOVA 0x10000000u /* of the arena */
#define NVME_TIMEOUT_NS 20000000000ull

struct nvme_cmd {
  uint8_t opcode, flags;
  uint16_t cid;
  uint32_t nsid;
  uint64_t reserved, metadata, prp1, prp2;
  uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
};

struct nvme_cqe {
  uint32_t result, reserved;
  uint16_t sqhd, sqid, cid, status;
};

struct nvme_queue {
  volatile struct nvme_cmd *sq;
  volatile struct nvme_cqe *cq;
  volatile uint32_t *sq_doorbell, *cq_doorbell;
  uint32_t depth, tail, head;
  uint16_t phase;
};

struct nvme {
  int fd, iommufd;
  uint32_t ioas;
  uint64_t config_offset, bar_size;
  volatile unsigned char *bar;
  unsigned char *arena;
  uint64_t arena_size, arena_used; /* used: queues, which come first */
  struct nvme_queue admin;
};

__attribute__((format(printf, 1, 2), noreturn)) static inline void die(const char *format, ...) {
  va_list args;
  fflush(stdout);
  fputs("nvme_driver: ", stderr);
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  _exit(1);
}

static inline uint64_t nvme_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- the device file -------------------------------------------------------------------------- */

static inline void nvme_open_device(struct nvme *nvme, const char *address) {
  char path[128];
  struct dirent *entry;
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev", address);
  DIR *dir = opendir(path);
  if (!dir)
    die("%s: %s", path, strerror(errno));
  while ((entry = readdir(dir)) && strncmp(entry->d_name, "vfio", 4))
    ;
  if (!entry)
    die("%s has no device file", address);
  snprintf(path, sizeof path, "/dev/vfio/devices/%.32s", entry->d_name);
  closedir(dir);
  /* One that was killed lets go of it in its own time. */
  struct vfio_device_bind_iommufd bind = {.argsz = sizeof bind};
  uint64_t start = nvme_now();
  if ((nvme->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC)) < 0)
    die("/dev/iommu: %s", strerror(errno));
  if ((nvme->fd = open(path, O_RDWR | O_CLOEXEC)) < 0)
    die("%s: %s", path, strerror(errno));
  bind.iommufd = nvme->iommufd;
  while (ioctl(nvme->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind))
    if (nvme_now() - start > NVME_TIMEOUT_NS || (errno != EINVAL && errno != EPERM))
      die("BIND_IOMMUFD: %s", strerror(errno));
}

static inline void nvme_attach(struct nvme *nvme) {
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof attach};
  if (ioctl(nvme->iommufd, IOMMU_IOAS_ALLOC, &alloc))
    die("IOAS_ALLOC: %s", strerror(errno));
  attach.pt_id = nvme->ioas = alloc.out_ioas_id;
  if (ioctl(nvme->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach))
    die("ATTACH_IOMMUFD_PT: %s", strerror(errno));
}

static inline void nvme_map_bar(struct nvme *nvme) {
  struct vfio_region_info info = {.argsz = sizeof info, .index = VFIO_PCI_CONFIG_REGION_INDEX};
  if (ioctl(nvme->fd, VFIO_DEVICE_GET_REGION_INFO, &info))
    die("GET_REGION_INFO: %s", strerror(errno));
  nvme->config_offset = info.offset;
  info = (struct vfio_region_info){.argsz = sizeof info};
  if (ioctl(nvme->fd, VFIO_DEVICE_GET_REGION_INFO, &info))
    die("GET_REGION_INFO: %s", strerror(errno));
  nvme->bar_size = info.size;
  nvme->bar = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, nvme->fd,
                   (off_t)info.offset);
  if (nvme->bar == MAP_FAILED)
    die("mmap of BAR 0: %s", strerror(errno));
}

static inline void nvme_set_master(struct nvme *nvme) {
  uint16_t command = 0x0006; /* memory, bus master */
  if (pwrite(nvme->fd, &command, 2, (off_t)nvme->config_offset + 4) != 2)
    die("PCI command: %s", strerror(errno));
}

static inline uint64_t nvme_iova(const struct nvme *nvme, const void *memory) {
  return NVME_IOVA + (uint64_t)((const unsigned char *)memory - nvme->arena);
}

/* shared: a memory file, which the device writes to directly; else ordinary private memory. */
static inline void nvme_make_arena(struct nvme *nvme, uint64_t size, int shared) {
  int flags = shared ? MAP_SHARED : MAP_PRIVATE;
  nvme->arena = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  if (nvme->arena == MAP_FAILED)
    die("an arena of %llu bytes: %s", (unsigned long long)size, strerror(errno));
  nvme->arena_size = size;
  struct iommu_ioas_map map = {
      .size = sizeof map,
      .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
      .ioas_id = nvme->ioas,
      .user_va = (uintptr_t)nvme->arena,
      .length = size,
      .iova = NVME_IOVA,
  };
  if (ioctl(nvme->iommufd, IOMMU_IOAS_MAP, &map))
    die("IOAS_MAP: %s", strerror(errno));
}

/* ---- registers -------------------------------------------------------------------------------- */

static inline uint32_t nvme_read32(const struct nvme *nvme, unsigned offset) {
  return *(volatile uint32_t *)(nvme->bar + offset);
}

static inline void nvme_write32(struct nvme *nvme, unsigned offset, uint32_t value) {
  *(volatile uint32_t *)(nvme->bar + offset) = value;
}

static inline void nvme_wait_ready(struct nvme *nvme, uint32_t ready) {
  uint64_t start = nvme_now();
  while ((nvme_read32(nvme, 0x1c) & 1) != ready)
    if (nvme_read32(nvme, 0x1c) & 2)
      die("CSTS.CFS");
    else if (nvme_now() - start > NVME_TIMEOUT_NS)
      die("CSTS.RDY does not become %u", ready);
}

/* ---- queues ----------------------------------------------------------------------------------- */

static inline void *nvme_take(struct nvme *nvme, uint64_t size) {
  unsigned char *memory = nvme->arena + nvme->arena_used;
  nvme->arena_used += (size + NVME_PAGE - 1) / NVME_PAGE * NVME_PAGE;
  if (nvme->arena_used > nvme->arena_size)
    die("the arena is too small");
  memset(memory, 0, size);
  return memory;
}

static inline void nvme_lay_out(struct nvme *nvme, struct nvme_queue *queue, unsigned id,
                                uint32_t depth) {
  if (!queue->sq) {
    queue->sq = nvme_take(nvme, depth * sizeof *queue->sq);
    queue->cq = nvme_take(nvme, depth * sizeof *queue->cq);
  } else
    memset((void *)queue->cq, 0, depth * sizeof *queue->cq);
  queue->sq_doorbell = (volatile uint32_t *)(nvme->bar + 0x1000 + 8 * id);
  queue->cq_doorbell = queue->sq_doorbell + 1;
  queue->depth = depth;
  queue->tail = queue->head = 0;
  queue->phase = 1;
}

/* Put a command into the queue; nvme_ring() tells the device. */
static inline void nvme_put(struct nvme_queue *queue, const struct nvme_cmd *cmd) {
  *(struct nvme_cmd *)&queue->sq[queue->tail] = *cmd;
  if (++queue->tail == queue->depth)
    queue->tail = 0;
}

static inline void nvme_ring(struct nvme_queue *queue) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  *queue->sq_doorbell = queue->tail;
}

/* The next completion; 0: there is none. */
static inline int nvme_next(struct nvme_queue *queue, struct nvme_cqe *cqe) {
  volatile struct nvme_cqe *at = &queue->cq[queue->head];
  if ((at->status & 1) != queue->phase)
    return 0;
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  *cqe = *(struct nvme_cqe *)at;
  if (++queue->head == queue->depth) {
    queue->head = 0;
    queue->phase ^= 1;
  }
  return 1;
}

static inline uint16_t nvme_admin(struct nvme *nvme, struct nvme_cmd *cmd, uint32_t *result) {
  struct nvme_cqe cqe;
  uint64_t start = nvme_now();
  nvme_put(&nvme->admin, cmd);
  nvme_ring(&nvme->admin);
  while (!nvme_next(&nvme->admin, &cqe))
    if (nvme_now() - start > NVME_TIMEOUT_NS)
      die("admin command %#x is not answered", cmd->opcode);
  *nvme->admin.cq_doorbell = nvme->admin.head;
  if (result)
    *result = cqe.result;
  return cqe.status >> 1;
}

/* Switch the controller off and on, with fresh queues. */
static inline void nvme_enable(struct nvme *nvme) {
  nvme_write32(nvme, 0x14, 0);
  nvme_wait_ready(nvme, 0);
  nvme_lay_out(nvme, &nvme->admin, 0, 32);
  nvme_write32(nvme, 0x24, 31 << 16 | 31);
  *(volatile uint64_t *)(nvme->bar + 0x28) = nvme_iova(nvme, (void *)nvme->admin.sq);
  *(volatile uint64_t *)(nvme->bar + 0x30) = nvme_iova(nvme, (void *)nvme->admin.cq);
  nvme_write32(nvme, 0x14, 4 << 20 | 6 << 16 | 1);
  nvme_wait_ready(nvme, 1);
}

static inline void nvme_create_queue(struct nvme *nvme, struct nvme_queue *queue, unsigned id,
                                     uint32_t depth) {
  nvme_lay_out(nvme, queue, id, depth);
  struct nvme_cmd cq = {.opcode = 5,
                        .prp1 = nvme_iova(nvme, (void *)queue->cq),
                        .cdw10 = (depth - 1) << 16 | id,
                        .cdw11 = 1};
  struct nvme_cmd sq = {.opcode = 1,
                        .prp1 = nvme_iova(nvme, (void *)queue->sq),
                        .cdw10 = (depth - 1) << 16 | id,
                        .cdw11 = id << 16 | 1};
  uint16_t status = nvme_admin(nvme, &cq, NULL);
  if (status || (status = nvme_admin(nvme, &sq, NULL)))
    die("queue %u cannot be made: status %#x", id, status);
}

static inline void nvme_delete_queue(struct nvme *nvme, unsigned id) {
  struct nvme_cmd sq = {.cdw10 = id}, cq = {.opcode = 4, .cdw10 = id};
  uint16_t status = nvme_admin(nvme, &sq, NULL);
  if (status || (status = nvme_admin(nvme, &cq, NULL)))
    die("queue %u cannot be deleted: status %#x", id, status);
}

/* Open it, with an arena of `size` bytes, and switch it on. */
static inline void nvme_start(struct nvme *nvme, const char *address, uint64_t size, int shared) {
  memset(nvme, 0, sizeof *nvme);
  nvme_open_device(nvme, address);
  nvme_attach(nvme);
  nvme_map_bar(nvme);
  nvme_set_master(nvme);
  nvme_make_arena(nvme, size, shared);
  nvme_enable(nvme);
}

/* Identify (cns) into a page of the arena. */
static inline void nvme_identify(struct nvme *nvme, uint32_t cns, uint32_t nsid, void *page) {
  struct nvme_cmd cmd = {
      .opcode = 6, .nsid = nsid, .prp1 = nvme_iova(nvme, page), .cdw10 = cns};
  uint16_t status = nvme_admin(nvme, &cmd, NULL);
  if (status)
    die("identify %#x: status %#x", cns, status);
}

#endif
