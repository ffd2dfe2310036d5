/*
 * A userspace driver for Intel's 82576 (docs/igb.md) that sends frames to itself, through iommufd
 * and a VFIO device file: registers through a mapping, descriptor rings, interrupts by MSI-X. It
 * knows what any Linux driver knows, and prints the same on real Linux. The exit status is 0 if
 * every frame came back as it was sent.
 *
 *   cc -Iuapi -o igb_loopback examples/igb_loopback.c
 *   igb_loopback [ADDRESS]        such as 0000:05:00.0; without it the first 82576 that is found
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

#define VENDOR 0x8086
#define DEVICE 0x10c9

/* Registers in BAR 0. */
enum {
  CTRL = 0x0000,
  STATUS = 0x0008,
  MDIC = 0x0020,
  RCTL = 0x0100,
  TCTL = 0x0400,
  GPIE = 0x1514,
  EIMS = 0x1524,
  EIMC = 0x1528,
  EIAC = 0x152c,
  EIAM = 0x1530,
  IVAR0 = 0x1700,
  RX = 0x2800, /* the rings of queue 0 */
  TX = 0x3800,
  GPRC = 0x4074,
  GPTC = 0x4080,
};
enum { BAL = 0x00, BAH = 0x04, LEN = 0x08, SRRCTL = 0x0c, HEAD = 0x10, TAIL = 0x18, DCTL = 0x28 };

#define CTRL_UP 0x1a41 /* full duplex, link up, 1000 Mb/s, both forced */
#define CTRL_SPEED 0x300
#define CTRL_RST (1u << 26)
#define STATUS_LU 0x2
#define MDIC_WRITE (1u << 26 | 1u << 21) /* to the PHY at address 1 */
#define MDIC_READY (1u << 28)
#define PHY_NEGOTIATE 0x1200
#define PHY_LOOPBACK 0x4140
#define RCTL_LOOPED 0x0400805a /* enable, all unicast and multicast, loopback, broadcast, no FCS */
#define TCTL_ON 0xa
#define QUEUE_ENABLE (1u << 25)
#define ONE_BUFFER (1u << 25) /* of SRRCTL: advanced descriptors */
#define MSIX_MODE (1u << 4 | 1u << 30)
#define RX_QUEUE_0_IS_VECTOR_0 0x80

#define DATA_DESCRIPTOR 0x2b300000u /* advanced, end of packet, FCS, report */
#define DONE 1u

#define N_DESCRIPTORS 256
#define BUFFER 2048
#define N_FRAMES 5000
#define BATCH 100
#define IOVA 0x100000
#define TIMEOUT_MS 10000

struct descriptor {
  uint64_t address;
  uint32_t low, high; /* received: status; length in the lower half */
};

struct rings {
  _Alignas(128) volatile struct descriptor tx[N_DESCRIPTORS], rx[N_DESCRIPTORS];
  unsigned char out[N_DESCRIPTORS][BUFFER], in[N_DESCRIPTORS][BUFFER];
};

struct igb {
  char address[16];
  int fd, iommufd, event;
  uint64_t bar_offset;
  volatile unsigned char *bar;
  struct rings *rings; /* at IOVA */
  uint32_t n_sent, n_received;
};

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...) {
  va_list args;
  fflush(stdout);
  fputs("igb_loopback: ", stderr);
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  exit(1);
}

/* ---- the device file ------------------------------------------------------------------------- */

static long read_hex(const char *address, const char *name) {
  char path[PATH_MAX], line[32] = "";
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", address, name);
  FILE *file = fopen(path, "re");
  if (!file || !fgets(line, sizeof line, file))
    die("cannot read %s: %s", path, strerror(errno));
  fclose(file);
  return strtol(line, NULL, 16);
}

static void find(struct igb *igb, const char *wanted) {
  struct dirent **entries;
  int n = scandir("/sys/bus/pci/devices", &entries, NULL, alphasort);
  if (n < 0)
    die("cannot read /sys/bus/pci/devices: %s", strerror(errno));
  for (int i = 0; i < n; i++) {
    const char *name = entries[i]->d_name;
    if (name[0] != '.' && !igb->address[0] && (!wanted || !strcmp(name, wanted)) &&
        read_hex(name, "vendor") == VENDOR && read_hex(name, "device") == DEVICE)
      snprintf(igb->address, sizeof igb->address, "%.12s", name);
    free(entries[i]);
  }
  free(entries);
  if (!igb->address[0])
    die("no PCI device %04x:%04x%s%s", VENDOR, DEVICE, wanted ? " at " : "", wanted ? wanted : "");
}

static void open_device(struct igb *igb) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev", igb->address);
  DIR *directory = opendir(path);
  if (!directory)
    die("%s is not bound to vfio-pci: no %s", igb->address, path);
  struct dirent *entry;
  while ((entry = readdir(directory)) && strncmp(entry->d_name, "vfio", 4) != 0)
    ;
  if (!entry)
    die("nothing in %s", path);
  snprintf(path, sizeof path, "/dev/vfio/devices/%s", entry->d_name);
  closedir(directory);
  igb->fd = open(path, O_RDWR | O_CLOEXEC);
  igb->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (igb->fd < 0 || igb->iommufd < 0)
    die("cannot open %s and /dev/iommu: %s", path, strerror(errno));
  printf("found     %s is %04x:%04x, %s\n", igb->address, VENDOR, DEVICE, path);
}

static void attach(struct igb *igb) {
  struct vfio_device_bind_iommufd bind = {.argsz = sizeof bind, .iommufd = igb->iommufd};
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof attach};
  if (ioctl(igb->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind) < 0)
    die("cannot bind %s: %s", igb->address, strerror(errno));
  if (ioctl(igb->iommufd, IOMMU_IOAS_ALLOC, &alloc) < 0)
    die("no I/O address space: %s", strerror(errno));
  attach.pt_id = alloc.out_ioas_id;
  if (ioctl(igb->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) < 0)
    die("cannot attach %s: %s", igb->address, strerror(errno));

  const int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_ANONYMOUS;
  igb->rings = mmap(NULL, sizeof *igb->rings, prot, flags, -1, 0);
  if (igb->rings == MAP_FAILED)
    die("no memory: %s", strerror(errno));
  struct iommu_ioas_map map = {
      .size = sizeof map,
      .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
      .ioas_id = alloc.out_ioas_id,
      .user_va = (uintptr_t)igb->rings,
      .length = sizeof *igb->rings,
      .iova = IOVA,
  };
  if (ioctl(igb->iommufd, IOMMU_IOAS_MAP, &map) < 0)
    die("cannot map %zu bytes: %s", sizeof *igb->rings, strerror(errno));
  printf("attached  rings and buffers, %zu bytes, at IOVA %#x\n", sizeof *igb->rings, IOVA);
}

static uint64_t iova_of(const struct igb *igb, const volatile void *memory) {
  return IOVA + (uint64_t)((const volatile char *)memory - (const volatile char *)igb->rings);
}

static void open_regions(struct igb *igb) {
  struct vfio_region_info bar = {.argsz = sizeof bar, .index = VFIO_PCI_BAR0_REGION_INDEX};
  struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
  if (ioctl(igb->fd, VFIO_DEVICE_GET_REGION_INFO, &bar) < 0 ||
      ioctl(igb->fd, VFIO_DEVICE_GET_REGION_INFO, &config) < 0)
    die("no information on regions: %s", strerror(errno));
  igb->bar_offset = bar.offset;
  void *mapping = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, igb->fd,
                       (off_t)bar.offset);
  if (mapping == MAP_FAILED)
    die("cannot map BAR 0: %s", strerror(errno));
  igb->bar = mapping;
  const uint16_t memory_and_master = 0x6;
  if (pwrite(igb->fd, &memory_and_master, 2, (off_t)config.offset + 4) != 2)
    die("cannot write config space: %s", strerror(errno));

  igb->event = eventfd(0, EFD_CLOEXEC);
  struct {
    struct vfio_irq_set set;
    int32_t event;
  } irqs = {
      .set = {.argsz = sizeof irqs,
              .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
              .index = VFIO_PCI_MSIX_IRQ_INDEX,
              .count = 1},
      .event = igb->event,
  };
  if (igb->event < 0 || ioctl(igb->fd, VFIO_DEVICE_SET_IRQS, &irqs) < 0)
    die("cannot set up MSI-X: %s", strerror(errno));
}

/* ---- registers ------------------------------------------------------------------------------- */

static uint32_t load(const struct igb *igb, uint32_t offset) {
  return *(volatile uint32_t *)(igb->bar + offset);
}

static void store(const struct igb *igb, uint32_t offset, uint32_t value) {
  *(volatile uint32_t *)(igb->bar + offset) = value;
}

/* A statistics register, which reading clears: by a call, as nobody notices a load. */
static uint32_t take(const struct igb *igb, uint32_t offset) {
  uint32_t value;
  if (pread(igb->fd, &value, sizeof value, (off_t)(igb->bar_offset + offset)) != sizeof value)
    die("cannot read register %#x: %s", offset, strerror(errno));
  return value;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void wait_for(const struct igb *igb, uint32_t offset, uint32_t mask, uint32_t value,
                     const char *what) {
  double deadline = seconds() + TIMEOUT_MS / 1000;
  while ((load(igb, offset) & mask) != value)
    if (seconds() > deadline)
      die("%s", what);
}

static void write_phy(const struct igb *igb, uint16_t control) {
  store(igb, MDIC, MDIC_WRITE | control);
  wait_for(igb, MDIC, MDIC_READY, MDIC_READY, "the PHY does not answer");
}

static void reset(const struct igb *igb) {
  store(igb, CTRL, load(igb, CTRL) | CTRL_RST);
  wait_for(igb, CTRL, CTRL_RST, 0, "the reset does not end");
  store(igb, EIMC, 0xffffffff);
  write_phy(igb, PHY_NEGOTIATE); /* QEMU's link needs it */
  write_phy(igb, PHY_LOOPBACK);
  store(igb, RCTL, RCTL_LOOPED);
  store(igb, CTRL, (load(igb, CTRL) & ~CTRL_SPEED) | CTRL_UP);
  wait_for(igb, STATUS, STATUS_LU, STATUS_LU, "the link does not come up");
  printf("reset     link up, in loopback\n");
}

static void start_queue(const struct igb *igb, uint32_t queue, const volatile void *ring) {
  store(igb, queue + BAL, (uint32_t)iova_of(igb, ring));
  store(igb, queue + BAH, 0);
  store(igb, queue + LEN, N_DESCRIPTORS * sizeof(struct descriptor));
  store(igb, queue + HEAD, 0);
  store(igb, queue + TAIL, 0);
  store(igb, queue + DCTL, QUEUE_ENABLE);
}

static void start(struct igb *igb) {
  store(igb, RX + SRRCTL, ONE_BUFFER);
  start_queue(igb, RX, igb->rings->rx);
  start_queue(igb, TX, igb->rings->tx);
  store(igb, TCTL, TCTL_ON);
  store(igb, GPIE, MSIX_MODE);
  store(igb, EIAC, 1);
  store(igb, EIAM, 1);
  store(igb, IVAR0, RX_QUEUE_0_IS_VECTOR_0);
}

/* ---- frames ---------------------------------------------------------------------------------- */

static uint32_t length_of(uint32_t number) { return 60 + number * 37 % 1455; }

static void fill(unsigned char *frame, uint32_t number) {
  memset(frame, 0xff, 6); /* to all */
  memcpy(frame + 6, "\x02\0\0\0\0\x01\x88\xb5", 8);
  for (uint32_t i = 14; i < length_of(number); i++)
    frame[i] = (unsigned char)(number * 31 + i * 7);
}

static void send_frames(struct igb *igb, uint32_t count) {
  for (uint32_t i = 0; i < count; i++, igb->n_sent++) {
    uint32_t at = igb->n_sent % N_DESCRIPTORS, length = length_of(igb->n_sent);
    volatile struct descriptor *rx = &igb->rings->rx[at], *tx = &igb->rings->tx[at];
    rx->address = iova_of(igb, igb->rings->in[at]);
    rx->low = rx->high = 0;
    fill(igb->rings->out[at], igb->n_sent);
    tx->address = iova_of(igb, igb->rings->out[at]);
    tx->low = DATA_DESCRIPTOR | length;
    tx->high = length << 14;
  }
  store(igb, RX + TAIL, igb->n_sent % N_DESCRIPTORS);
  store(igb, TX + TAIL, igb->n_sent % N_DESCRIPTORS);
}

/* The frames that are there; dies if one is not what was sent. */
static void receive_frames(struct igb *igb) {
  static unsigned char expected[BUFFER];
  while (igb->n_received < igb->n_sent) {
    uint32_t at = igb->n_received % N_DESCRIPTORS, length = length_of(igb->n_received);
    volatile struct descriptor *rx = &igb->rings->rx[at];
    if (!(__atomic_load_n(&rx->low, __ATOMIC_ACQUIRE) & DONE))
      return;
    fill(expected, igb->n_received);
    if ((rx->high & 0xffff) != length || memcmp(igb->rings->in[at], expected, length) != 0)
      die("frame %u did not come back as it was sent", igb->n_received);
    igb->n_received++;
  }
}

static void wait_for_irq(const struct igb *igb) {
  struct pollfd fd = {.fd = igb->event, .events = POLLIN};
  uint64_t count;
  store(igb, EIMS, 1);
  if (poll(&fd, 1, TIMEOUT_MS) != 1)
    die("no interrupt in %d seconds; %u of %u frames came", TIMEOUT_MS / 1000, igb->n_received,
        igb->n_sent);
  if (read(igb->event, &count, sizeof count) != sizeof count)
    die("cannot read the eventfd: %s", strerror(errno));
}

int main(int argc, char **argv) {
  struct igb igb = {0};
  find(&igb, argc > 1 ? argv[1] : NULL);
  open_device(&igb);
  attach(&igb);
  open_regions(&igb);
  reset(&igb);
  start(&igb);
  take(&igb, GPTC), take(&igb, GPRC);
  uint64_t n_bytes = 0;
  for (uint32_t i = 0; i < N_FRAMES; i++)
    n_bytes += length_of(i);
  while (igb.n_received < N_FRAMES) {
    send_frames(&igb, BATCH);
    while (receive_frames(&igb), igb.n_received < igb.n_sent)
      wait_for_irq(&igb);
  }
  printf("frames    %u of %u came back, %llu bytes\n", igb.n_received, igb.n_sent,
         (unsigned long long)n_bytes);
  printf("counted   %u sent, %u received\n", take(&igb, GPTC), take(&igb, GPRC));
  store(&igb, RCTL, 0);
  store(&igb, TCTL, 0);
  printf("done      all as it should be\n");
  return 0;
}
