/*
 * Round trips of ioctls, ours and the floor's in turn.
 *
 *     ioctls TREE FLOOR     where `iommufs mount` serves, and the file of floor.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "iommufd.h"
#include "vfio.h"

#define ROUNDS 9
#define FLOOR "C server that only reads and writes back"
#define MEMORY (1ull << 30)

static int iommufd, device, floor_fd;
static uint32_t ioas_id;
static void *memory; /* private, never touched */

static unsigned touched(void) {
  static unsigned char resident[MEMORY / 4096];
  unsigned n = 0;
  MUST(!mincore(memory, MEMORY, resident));
  for (size_t i = 0; i < sizeof resident; i++)
    n += resident[i] & 1;
  return n;
}

static int open_in(const char *tree, const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", tree, name);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  MUST(fd >= 0);
  return fd;
}

static void map_unmap(int fd, uint64_t length) {
  struct iommu_ioas_map map = {
      .size = sizeof map,
      .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE,
      .ioas_id = ioas_id,
      .user_va = (uintptr_t)memory,
      .length = length,
      .iova = 1ull << 32,
  };
  struct iommu_ioas_unmap unmap = {
      .size = sizeof unmap, .ioas_id = ioas_id, .iova = map.iova, .length = length};
  MUST(!ioctl(fd, IOMMU_IOAS_MAP, &map));
  MUST(!ioctl(fd, IOMMU_IOAS_UNMAP, &unmap));
}

static void get_info(int fd) {
  struct vfio_device_info info = {.argsz = sizeof info};
  MUST(!ioctl(fd, VFIO_DEVICE_GET_INFO, &info));
}

static void rounds_of_map(struct series *series, int fd, uint64_t length, int n) {
  uint64_t start = now_ns();
  for (int i = 0; i < n; i++)
    map_unmap(fd, length);
  series_add(series, start, (uint64_t)n);
}

static void rounds_of_info(struct series *series, int fd, int n) {
  uint64_t start = now_ns();
  for (int i = 0; i < n; i++)
    get_info(fd);
  series_add(series, start, (uint64_t)n);
}

static void small_maps(const char *figure) {
  struct series ours = {0}, peer = {0};
  for (int round = 0; round < ROUNDS; round++) {
    rounds_of_map(&peer, floor_fd, 4096, 500);
    rounds_of_map(&ours, iommufd, 4096, 500);
  }
  report(figure, &ours, FLOOR, &peer, "\"ioctls\": 2");
}

static void large_maps(const char *figure, uint64_t length) {
  struct series ours = {0}, peer = {0};
  for (int round = 0; round < ROUNDS; round++) {
    rounds_of_map(&peer, iommufd, 4096, 300);
    rounds_of_map(&ours, iommufd, length, 300);
  }
  report(figure, &ours, "the same of 4 KiB", &peer, "\"client_pages_touched\": %u",
         touched());
}

static void infos(void) {
  struct series ours = {0}, peer = {0};
  for (int round = 0; round < ROUNDS; round++) {
    rounds_of_info(&peer, floor_fd, 1000);
    rounds_of_info(&ours, device, 1000);
  }
  report("ioctl: GET_INFO", &ours, FLOOR, &peer, "\"ioctls\": 1");
}

int main(int argc, char **argv) {
  MUST(argc == 3);
  iommufd = open_in(argv[1], "dev/iommu");
  device = open_in(argv[1], "dev/vfio/devices/vfio0");
  MUST((floor_fd = open(argv[2], O_RDWR | O_CLOEXEC)) >= 0);
  memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0);
  MUST(memory != MAP_FAILED && !madvise(memory, MEMORY, MADV_NOHUGEPAGE));
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  MUST(!ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc));
  ioas_id = alloc.out_ioas_id;
  small_maps("ioctl: MAP + UNMAP 4 KiB, no device");
  struct vfio_device_bind_iommufd bind = {.argsz = sizeof bind, .iommufd = iommufd};
  struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof attach, .pt_id = ioas_id};
  MUST(!ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
  infos();
  MUST(!ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
  small_maps("ioctl: MAP + UNMAP 4 KiB, device attached");
  large_maps("ioctl: MAP + UNMAP 64 MiB, device attached", 64ull << 20);
  large_maps("ioctl: MAP + UNMAP 1 GiB, device attached", MEMORY);
  return 0;
}
