/*
 * A userspace driver for the educational PCI device 1234:11e8 (docs/edu.md), through iommufd and
 * a VFIO device file. It knows what any Linux driver knows: paths in /sys and /dev, and the two
 * headers. Each step is printed with what was seen; the exit status is 0 if all of it was right.
 *
 *   cc -Iuapi -o edu_driver examples/edu_driver.c
 *   edu_driver [ADDRESS]        such as 0000:00:06.0; without it the first edu that is found
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "iommufd.h"
#include "vfio.h"

#define VENDOR 0x1234
#define DEVICE 0x11e8

/* Registers in BAR 0. */
#define ID 0x00
#define LIVENESS 0x04
#define FACTORIAL 0x08
#define STATUS 0x20
#define STATUS_COMPUTING 0x01
#define STATUS_IRQ 0x80
#define IRQ_STATUS 0x24
#define IRQ_ACK 0x64
#define DMA_SOURCE 0x80
#define DMA_DESTINATION 0x88
#define DMA_COUNT 0x90
#define DMA_COMMAND 0x98
#define DMA_RUN 0x1
#define DMA_TO_MEMORY 0x2
#define DMA_IRQ 0x4

#define FACTORIAL_DONE 0x001
#define DMA_DONE 0x100

#define BUFFER 0x40000 /* the device's own memory, as its DMA engine calls it */
#define BUFFER_SIZE 4096
#define DMA_BITS 28

#define PCI_COMMAND 0x04
#define PCI_COMMAND_MEMORY 0x2
#define PCI_COMMAND_MASTER 0x4

#define TIMEOUT_MS 10000

struct edu {
  char address[16];
  int fd, iommufd;
  uint32_t ioas;
  uint64_t bar_offset, bar_size, config_offset;
  volatile unsigned char *bar; /* the mapping */
};

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...) {
  va_list args;
  fflush(stdout);
  fputs("edu_driver: ", stderr);
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  exit(1);
}

/* ---- finding the device ---------------------------------------------------------------------- */

static long read_hex(const char *directory, const char *name) {
  char path[PATH_MAX], line[32];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  FILE *file = fopen(path, "re");
  if (!file || !fgets(line, sizeof line, file))
    die("cannot read %s: %s", path, strerror(errno));
  fclose(file);
  return strtol(line, NULL, 16);
}

static int is_edu(const char *address) {
  char directory[PATH_MAX];
  snprintf(directory, sizeof directory, "/sys/bus/pci/devices/%s", address);
  return read_hex(directory, "vendor") == VENDOR && read_hex(directory, "device") == DEVICE;
}

/* The first edu, or the one asked for. */
static void find_edu(struct edu *edu, const char *wanted) {
  struct dirent **entries;
  int n = scandir("/sys/bus/pci/devices", &entries, NULL, alphasort);
  if (n < 0)
    die("cannot read /sys/bus/pci/devices: %s", strerror(errno));
  for (int i = 0; i < n; i++) {
    const char *name = entries[i]->d_name;
    if (name[0] != '.' && !edu->address[0] && (!wanted || !strcmp(name, wanted)) && is_edu(name))
      snprintf(edu->address, sizeof edu->address, "%.12s", name);
    free(entries[i]);
  }
  free(entries);
  if (!edu->address[0])
    die("no PCI device %04x:%04x%s%s", VENDOR, DEVICE, wanted ? " at " : "", wanted ? wanted : "");
}

/* Opens /dev/vfio/devices/vfioN, N as /sys tells. */
static void open_edu(struct edu *edu) {
  char path[PATH_MAX], group[PATH_MAX] = "";
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", edu->address);
  if (readlink(path, group, sizeof group - 1) < 0)
    die("%s has no IOMMU group: %s", edu->address, strerror(errno));
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev", edu->address);
  DIR *directory = opendir(path);
  if (!directory)
    die("%s is not bound to vfio-pci: no %s", edu->address, path);
  struct dirent *entry;
  while ((entry = readdir(directory)) && strncmp(entry->d_name, "vfio", 4) != 0)
    ;
  if (!entry)
    die("nothing in %s", path);
  snprintf(path, sizeof path, "/dev/vfio/devices/%s", entry->d_name);
  closedir(directory);
  edu->fd = open(path, O_RDWR | O_CLOEXEC);
  if (edu->fd < 0)
    die("cannot open %s: %s", path, strerror(errno));
  printf("found     %s is %04x:%04x, IOMMU group %s, %s\n", edu->address, VENDOR, DEVICE,
         strrchr(group, '/') + 1, path);
}

/* ---- iommufd --------------------------------------------------------------------------------- */

static void bind_and_attach(struct edu *edu) {
  edu->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (edu->iommufd < 0)
    die("cannot open /dev/iommu: %s", strerror(errno));
  struct vfio_device_bind_iommufd bind = {.argsz = sizeof bind, .iommufd = edu->iommufd};
  if (ioctl(edu->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind) < 0)
    die("cannot bind %s: %s", edu->address, strerror(errno));
  printf("bound     the iommufd calls it device %u\n", bind.out_devid);

  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  if (ioctl(edu->iommufd, IOMMU_IOAS_ALLOC, &alloc) < 0)
    die("no I/O address space: %s", strerror(errno));
  edu->ioas = alloc.out_ioas_id;
  struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof attach, .pt_id = edu->ioas};
  if (ioctl(edu->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) < 0)
    die("cannot attach %s: %s", edu->address, strerror(errno));
  printf("attached  to I/O address space %u, page table %u\n", edu->ioas, attach.pt_id);
}

static uint64_t map_memory(struct edu *edu, void *memory, size_t length) {
  struct iommu_ioas_map map = {
      .size = sizeof map,
      .flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
      .ioas_id = edu->ioas,
      .user_va = (uintptr_t)memory,
      .length = length,
  };
  if (ioctl(edu->iommufd, IOMMU_IOAS_MAP, &map) < 0)
    die("cannot map %zu bytes: %s", length, strerror(errno));
  if (map.iova + length > 1ULL << DMA_BITS)
    die("the IOVA %#llx is beyond the device's %d bits", map.iova, DMA_BITS);
  printf("mapped    %zu bytes of memory at IOVA %#llx\n", length, map.iova);
  return map.iova;
}

static void unmap_memory(struct edu *edu, uint64_t iova, size_t length) {
  struct iommu_ioas_unmap unmap = {
      .size = sizeof unmap, .ioas_id = edu->ioas, .iova = iova, .length = length};
  if (ioctl(edu->iommufd, IOMMU_IOAS_UNMAP, &unmap) < 0)
    die("cannot unmap IOVA %#lx: %s", iova, strerror(errno));
  printf("unmapped  %llu bytes\n", unmap.length);
}

/* ---- registers ------------------------------------------------------------------------------- */

/* By calls, which the device answers at once. */
static uint32_t read4(struct edu *edu, uint64_t offset) {
  uint32_t value;
  if (pread(edu->fd, &value, sizeof value, (off_t)(edu->bar_offset + offset)) != sizeof value)
    die("cannot read register %#lx: %s", offset, strerror(errno));
  return value;
}

static void write4(struct edu *edu, uint64_t offset, uint32_t value) {
  if (pwrite(edu->fd, &value, sizeof value, (off_t)(edu->bar_offset + offset)) != sizeof value)
    die("cannot write register %#lx: %s", offset, strerror(errno));
}

/* By loads and stores of the mapping. */
static uint32_t load4(struct edu *edu, uint64_t offset) {
  return *(volatile uint32_t *)(edu->bar + offset);
}

static void store4(struct edu *edu, uint64_t offset, uint32_t value) {
  *(volatile uint32_t *)(edu->bar + offset) = value;
}

static uint64_t load8(struct edu *edu, uint64_t offset) {
  return *(volatile uint64_t *)(edu->bar + offset);
}

static void store8(struct edu *edu, uint64_t offset, uint64_t value) {
  *(volatile uint64_t *)(edu->bar + offset) = value;
}

static struct vfio_region_info region(struct edu *edu, uint32_t index) {
  struct vfio_region_info info = {.argsz = sizeof info, .index = index};
  if (ioctl(edu->fd, VFIO_DEVICE_GET_REGION_INFO, &info) < 0)
    die("no information on region %u: %s", index, strerror(errno));
  return info;
}

static void open_regions(struct edu *edu) {
  struct vfio_region_info bar = region(edu, VFIO_PCI_BAR0_REGION_INDEX);
  edu->bar_offset = bar.offset;
  edu->bar_size = bar.size;
  edu->config_offset = region(edu, VFIO_PCI_CONFIG_REGION_INDEX).offset;
  if (!(bar.flags & VFIO_REGION_INFO_FLAG_MMAP))
    die("BAR 0 cannot be mapped");
  void *mapping = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, edu->fd,
                       (off_t)bar.offset);
  if (mapping == MAP_FAILED)
    die("cannot map BAR 0: %s", strerror(errno));
  edu->bar = mapping;
  uint32_t id = load4(edu, ID);
  printf("BAR 0     %llu bytes, mapped; identification %#010x: version %u.%u\n", bar.size, id,
         id >> 24, id >> 16 & 0xff);
  if ((id & 0xffff) != 0x00ed)
    die("this is no edu");
}

static void enable_dma(struct edu *edu) {
  uint16_t command;
  off_t at = (off_t)edu->config_offset + PCI_COMMAND;
  if (pread(edu->fd, &command, sizeof command, at) != sizeof command)
    die("cannot read config space: %s", strerror(errno));
  uint16_t wanted = command | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, now;
  if (pwrite(edu->fd, &wanted, sizeof wanted, at) != sizeof wanted ||
      pread(edu->fd, &now, sizeof now, at) != sizeof now)
    die("cannot write config space: %s", strerror(errno));
  printf("config    command was %#06x, is %#06x: bus mastering %s\n", command, now,
         now & PCI_COMMAND_MASTER ? "on" : "off");
  if (now != wanted)
    die("bus mastering cannot be switched on");
}

static void check_liveness(struct edu *edu) {
  const uint32_t value = 0x12345678;
  write4(edu, LIVENESS, value);
  uint32_t answer = read4(edu, LIVENESS);
  printf("liveness  wrote %#x, read %#x\n", value, answer);
  if (answer != ~value)
    die("the device should have answered %#x", ~value);
}

/* ---- interrupts ------------------------------------------------------------------------------ */

static void set_irqs(struct edu *edu, uint32_t index, uint32_t flags, uint32_t count, int event) {
  struct {
    struct vfio_irq_set set;
    int32_t event;
  } irqs = {
      .set = {.argsz = sizeof irqs, .flags = flags, .index = index, .count = count},
      .event = event,
  };
  if (ioctl(edu->fd, VFIO_DEVICE_SET_IRQS, &irqs) < 0)
    die("cannot set up interrupts of index %u: %s", index, strerror(errno));
}

static void connect_irq(struct edu *edu, uint32_t index, int event) {
  set_irqs(edu, index, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, 1, event);
}

static void disconnect_irq(struct edu *edu, uint32_t index) {
  set_irqs(edu, index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, -1);
}

/* Waits for an interrupt; returns how many came. */
static uint64_t wait_irq(int event) {
  struct pollfd fd = {.fd = event, .events = POLLIN};
  uint64_t count;
  if (poll(&fd, 1, TIMEOUT_MS) != 1)
    die("no interrupt in %d seconds", TIMEOUT_MS / 1000);
  if (read(event, &count, sizeof count) != sizeof count)
    die("cannot read the eventfd: %s", strerror(errno));
  return count;
}

/* Checks why the device interrupted and tells it that we know. */
static void acknowledge(struct edu *edu, uint32_t expected) {
  uint32_t reason = read4(edu, IRQ_STATUS);
  if (reason != expected)
    die("the interrupt's reason is %#x, not %#x", reason, expected);
  write4(edu, IRQ_ACK, reason);
  if (read4(edu, IRQ_STATUS) != 0)
    die("the interrupt was not acknowledged");
}

static uint32_t factorial(uint32_t n) { return n ? n * factorial(n - 1) : 1; }

static void check_factorial(struct edu *edu, const char *how, uint32_t n, uint64_t irqs) {
  uint32_t result = load4(edu, FACTORIAL);
  printf("factorial %u! = %u, %s: %llu interrupt%s, reason %#05x\n", n, result, how,
         (unsigned long long)irqs, irqs == 1 ? "" : "s", read4(edu, IRQ_STATUS));
  if (result != factorial(n) || irqs != 1)
    die("it should have been %u and 1 interrupt", factorial(n));
  acknowledge(edu, FACTORIAL_DONE);
}

/* A message for each result; the number goes in through the mapping. */
static void factorials_by_msi(struct edu *edu, int event) {
  connect_irq(edu, VFIO_PCI_MSI_IRQ_INDEX, event);
  write4(edu, STATUS, STATUS_IRQ);
  for (uint32_t n = 5; n <= 10; n += 5) {
    store4(edu, FACTORIAL, n);
    check_factorial(edu, "MSI", n, wait_irq(event));
  }
  disconnect_irq(edu, VFIO_PCI_MSI_IRQ_INDEX);
}

/* INTx is a level: Linux masks it when it fires, we unmask it when the device is quiet again. */
static void factorials_by_intx(struct edu *edu, int event) {
  connect_irq(edu, VFIO_PCI_INTX_IRQ_INDEX, event);
  for (uint32_t n = 11; n <= 12; n++) {
    write4(edu, FACTORIAL, n);
    check_factorial(edu, "INTx", n, wait_irq(event));
    set_irqs(edu, VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, 1,
             -1);
  }
  disconnect_irq(edu, VFIO_PCI_INTX_IRQ_INDEX);
  write4(edu, STATUS, 0);
}

/* ---- DMA ------------------------------------------------------------------------------------- */

static void start_dma(struct edu *edu, uint64_t from, uint64_t to, uint64_t count, uint64_t how) {
  store8(edu, DMA_SOURCE, from);
  store8(edu, DMA_DESTINATION, to);
  store8(edu, DMA_COUNT, count);
  store8(edu, DMA_COMMAND, DMA_RUN | how);
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void dma(struct edu *edu, uint64_t from, uint64_t to, uint64_t count, uint64_t how) {
  start_dma(edu, from, to, count, how);
  double deadline = seconds() + TIMEOUT_MS / 1000;
  while (load8(edu, DMA_COMMAND) & DMA_RUN)
    if (seconds() > deadline)
      die("the DMA does not end");
}

static int is_all(const unsigned char *bytes, unsigned char value, size_t length) {
  for (size_t i = 0; i < length; i++)
    if (bytes[i] != value)
      return 0;
  return 1;
}

/* Memory to the device's buffer, and from there to another place in memory. */
static void copy_by_dma(struct edu *edu, unsigned char *memory, uint64_t iova, int event) {
  for (size_t i = 0; i < BUFFER_SIZE; i++)
    memory[i] = (unsigned char)(i * 7 + i / 256);
  memset(memory + BUFFER_SIZE, 0, BUFFER_SIZE);
  dma(edu, iova, BUFFER, BUFFER_SIZE, 0);
  printf("DMA       %d bytes from IOVA %#lx to the device\n", BUFFER_SIZE, iova);

  connect_irq(edu, VFIO_PCI_MSI_IRQ_INDEX, event);
  start_dma(edu, BUFFER, iova + BUFFER_SIZE, BUFFER_SIZE, DMA_TO_MEMORY | DMA_IRQ);
  uint64_t irqs = wait_irq(event);
  int same = !memcmp(memory, memory + BUFFER_SIZE, BUFFER_SIZE);
  printf("DMA       %d bytes from the device to IOVA %#lx, %llu interrupt: %s\n", BUFFER_SIZE,
         iova + BUFFER_SIZE, (unsigned long long)irqs, same ? "the same bytes" : "OTHER BYTES");
  if (!same || irqs != 1)
    die("the copy is wrong");
  acknowledge(edu, DMA_DONE);
  disconnect_irq(edu, VFIO_PCI_MSI_IRQ_INDEX);
}

/* Both ways to an IOVA where nothing is mapped. `memory` must keep its bytes. */
static void refused_dma(struct edu *edu, unsigned char *memory, uint64_t iova, uint64_t unmapped) {
  memset(memory, 0xa5, 2 * BUFFER_SIZE);
  dma(edu, BUFFER, unmapped, BUFFER_SIZE, DMA_TO_MEMORY);
  int untouched = is_all(memory, 0xa5, 2 * BUFFER_SIZE);
  printf("refused   DMA to IOVA %#lx, not mapped: %s\n", unmapped,
         untouched ? "no byte of memory has changed" : "MEMORY HAS CHANGED");
  if (!untouched)
    die("a DMA went where it must not");

  dma(edu, unmapped, BUFFER, 16, 0);
  dma(edu, BUFFER, iova, 16, DMA_TO_MEMORY);
  int empty = is_all(memory, 0, 16) && is_all(memory + 16, 0xa5, 2 * BUFFER_SIZE - 16);
  printf("refused   DMA from IOVA %#lx, not mapped: %s\n", unmapped,
         empty ? "the device got nothing but zeros" : "THE DEVICE GOT SOMETHING");
  if (!empty)
    die("a DMA came from where it must not");
}

/* What was mapped once is not any more. */
static void refused_after_unmap(struct edu *edu, unsigned char *memory, uint64_t iova) {
  unmap_memory(edu, iova, 2 * BUFFER_SIZE);
  memset(memory, 0x5a, 2 * BUFFER_SIZE);
  dma(edu, BUFFER, iova, BUFFER_SIZE, DMA_TO_MEMORY);
  int untouched = is_all(memory, 0x5a, 2 * BUFFER_SIZE);
  printf("refused   DMA to IOVA %#lx, unmapped: %s\n", iova,
         untouched ? "no byte of memory has changed" : "MEMORY HAS CHANGED");
  if (!untouched)
    die("a DMA went where it must not");
}

int main(int argc, char **argv) {
  struct edu edu = {0};
  find_edu(&edu, argc > 1 ? argv[1] : NULL);
  open_edu(&edu);
  bind_and_attach(&edu);
  open_regions(&edu);
  enable_dma(&edu);
  check_liveness(&edu);

  int event = eventfd(0, EFD_CLOEXEC);
  if (event < 0)
    die("no eventfd: %s", strerror(errno));
  factorials_by_msi(&edu, event);
  factorials_by_intx(&edu, event);

  /* Linux chooses the IOVA by the alignment of the memory. */
  unsigned char *memory = aligned_alloc(2 * BUFFER_SIZE, 2 * BUFFER_SIZE);
  if (!memory)
    die("no memory: %s", strerror(errno));
  uint64_t iova = map_memory(&edu, memory, 2 * BUFFER_SIZE);
  copy_by_dma(&edu, memory, iova, event);
  refused_dma(&edu, memory, iova, (1ULL << DMA_BITS) - 2 * BUFFER_SIZE);
  refused_after_unmap(&edu, memory, iova);

  struct vfio_device_detach_iommufd_pt detach = {.argsz = sizeof detach};
  if (ioctl(edu.fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach) < 0)
    die("cannot detach: %s", strerror(errno));
  munmap((void *)edu.bar, edu.bar_size);
  close(event);
  close(edu.fd);
  close(edu.iommufd);
  free(memory);
  printf("done      all as it should be\n");
  return 0;
}
