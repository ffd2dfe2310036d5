/*
 * Round trips of ioctls and reads, ours and the floor's in turn.
 *
 *     ioctls TREE FLOOR     where `iommufs mount` serves, and the file of floor.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "iommufd.h"
#include "vfio.h"

#define ROUNDS 9
#define FLOOR "C server that only reads and writes back"
#define MEMORY (1ull << 30)
#define MANY 64 /* clients */

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

static void rounds_of_reads(struct series *series, int fd, int n) {
  const off_t config_space = 7ll << 40;
  uint32_t ids;
  uint64_t start = now_ns();
  for (int i = 0; i < n; i++)
    MUST(pread(fd, &ids, sizeof ids, config_space) == sizeof ids);
  series_add(series, start, (uint64_t)n);
}

static void reads(void) {
  struct series ours = {0}, peer = {0};
  for (int round = 0; round < ROUNDS; round++) {
    rounds_of_reads(&peer, floor_fd, 1000);
    rounds_of_reads(&ours, device, 1000);
  }
  report("read: 4 bytes of config space", &ours, "C server that gives as many bytes", &peer,
         "\"reads\": 1");
}

/* A call that nothing but Python answers, and that writes its structure back. */
static void get_option(int fd) {
  struct iommu_option option = {.size = sizeof option,
                                .option_id = IOMMU_OPTION_HUGE_PAGES,
                                .op = IOMMU_OPTION_OP_GET,
                                .object_id = ioas_id};
  MUST(!ioctl(fd, IOMMU_OPTION, &option));
}

static void options(void) {
  struct series ours = {0}, peer = {0};
  for (int round = 0; round < ROUNDS; round++) {
    rounds_of_info(&peer, floor_fd, 1000);
    uint64_t start = now_ns();
    for (int i = 0; i < 500; i++)
      get_option(iommufd);
    series_add(&ours, start, 500);
  }
  report("ioctl: OPTION, through Python", &ours, FLOOR, &peer, "\"ioctls\": 1");
}

/* Two that make an object and take it away, and wake nobody else. */
static void alloc_destroy(int fd) {
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  MUST(!ioctl(fd, IOMMU_IOAS_ALLOC, &alloc));
  struct iommu_destroy destroy = {.size = sizeof destroy, .id = alloc.out_ioas_id};
  MUST(!ioctl(fd, IOMMU_DESTROY, &destroy));
}

static void allocs(void) {
  struct series ours = {0}, peer = {0};
  for (int round = 0; round < ROUNDS; round++) {
    rounds_of_map(&peer, floor_fd, 4096, 500);
    uint64_t start = now_ns();
    for (int i = 0; i < 300; i++)
      alloc_destroy(iommufd);
    series_add(&ours, start, 300);
  }
  report("ioctl: IOAS_ALLOC + DESTROY, through Python", &ours, FLOOR, &peer, "\"ioctls\": 2");
}

/* ---- many clients ---------------------------------------------------------------------------- */

static _Atomic uint64_t *done; /* by each client */

/* Maps and unmaps through an iommufd of its own until it is killed. */
static void be_client(const char *tree, int number) {
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  int fd = open_in(tree, "dev/iommu");
  MUST(!ioctl(fd, IOMMU_IOAS_ALLOC, &alloc));
  ioas_id = alloc.out_ioas_id;
  for (;; done[number]++)
    map_unmap(fd, 4096);
}

/* Time for one of all clients' operations together; the slowest client's part of the mean. */
static double round_of_clients(struct series *series, const char *tree, int n) {
  pid_t clients[MANY];
  uint64_t total = 0, least = UINT64_MAX;
  uint64_t before[MANY];
  memset((void *)done, 0, MANY * sizeof *done);
  for (int i = 0; i < n; i++) {
    MUST((clients[i] = fork()) >= 0);
    if (!clients[i])
      be_client(tree, i);
  }
  for (int i = 0; i < n; i++)
    while (!done[i])
      usleep(1000);
  for (int i = 0; i < n; i++)
    before[i] = done[i];
  uint64_t start = now_ns();
  usleep(500000);
  for (int i = 0; i < n; i++) {
    uint64_t mine = done[i] - before[i];
    total += mine;
    least = mine < least ? mine : least;
  }
  series_add(series, start, total);
  for (int i = 0; i < n; i++) {
    kill(clients[i], SIGKILL);
    MUST(waitpid(clients[i], NULL, 0) == clients[i]);
  }
  return 100.0 * (double)least * n / (double)total;
}

static void many_clients(const char *tree) {
  struct series ours = {0}, peer = {0};
  double slowest = 100;
  done = mmap(NULL, MANY * sizeof *done, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  MUST(done != MAP_FAILED);
  for (int round = 0; round < 3; round++) {
    round_of_clients(&peer, tree, 1);
    double part = round_of_clients(&ours, tree, MANY);
    slowest = part < slowest ? part : slowest;
  }
  report("ioctl: MAP + UNMAP 4 KiB, 64 clients together", &ours, "one client", &peer,
         "\"percent_of_the_mean_for_the_slowest\": %.0f", slowest);
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
  options();
  allocs();
  struct vfio_device_bind_iommufd bind = {.argsz = sizeof bind, .iommufd = iommufd};
  struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof attach, .pt_id = ioas_id};
  MUST(!ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
  infos();
  reads();
  MUST(!ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
  small_maps("ioctl: MAP + UNMAP 4 KiB, device attached");
  large_maps("ioctl: MAP + UNMAP 64 MiB, device attached", 64ull << 20);
  large_maps("ioctl: MAP + UNMAP 1 GiB, device attached", MEMORY);
  many_clients(argv[1]);
  return 0;
}
