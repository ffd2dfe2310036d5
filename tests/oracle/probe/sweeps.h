// All that can be asked of one device: information, features, regions, interrupts, edu's DMA.

#pragma once

#include "calls.h"
#include "vdev.h"

// GET_INFO, REGION_INFO and IRQ_INFO of d: all indices, all sizes.
static void info_sweep(struct vdev *d) {
  u32 az[] = {0, 4, 15, 16, 19, 20, 21, 23, 24, 25, 32, 64, 4096};
  for (unsigned i = 0; i < sizeof az / 4; i++) {
    static struct {
      struct dev_info d;
      u8 t[64];
    } q;

    memset(&q, 0, sizeof q);
    q.d.argsz = az[i];
    q.d.flags = 0xffffffff;
    q.d.cap_offset = 0x1111;
    q.d.pad = 0x2222;
    rec_ioctl(named("%s GET_INFO argsz %u", d->key, az[i]), d->fd, V_INFO, dev_info_fields, &q,
              sizeof q, 0);
  }
  rec_ioctl_raw("GET_INFO NULL", d->fd, V_INFO, 0, "NULL");
  for (u32 x = 0; x < 11; x++) {
    static struct {
      struct region_info r;
      u8 t[256];
    } q;

    memset(&q, 0, sizeof q);
    q.r.argsz = 32;
    q.r.index = x;
    rec_ioctl(named("%s REGION %u argsz 32", d->key, x), d->fd, V_REGION, region_info_fields, &q,
              32, 0);
    memset(&q, 0, sizeof q);
    q.r.argsz = 256;
    q.r.index = x;
    hexdump_n = 96;
    rec_ioctl(named("%s REGION %u argsz 256", d->key, x), d->fd, V_REGION, region_info_fields, &q,
              sizeof q, hex_post);
  }
  for (u32 s = 28; s <= 64; s += (s < 34 ? 1 : 6)) {
    static struct {
      struct region_info r;
      u8 t[256];
    } q;

    memset(&q, 0, sizeof q);
    q.r.argsz = s;
    q.r.index = 0;
    rec_ioctl(named("%s REGION 0 argsz %u", d->key, s), d->fd, V_REGION, region_info_fields, &q, 32,
              0);
  }
  for (u32 x = 0; x < 7; x++) {
    struct irq_info q = {16, 0xffff, x, 0x3333};
    rec_ioctl(named("%s IRQ_INFO %u", d->key, x), d->fd, V_IRQINFO, irq_info_fields, &q, 16, 0);
  }
  {
    struct irq_info q = {15, 0, 0, 0};
    rec_ioctl("IRQ_INFO argsz 15", d->fd, V_IRQINFO, irq_info_fields, &q, 16, 0);
    q.argsz = 12;
    rec_ioctl("IRQ_INFO argsz 12", d->fd, V_IRQINFO, irq_info_fields, &q, 16, 0);
    q = (struct irq_info){32, 0, 0, 0};
    rec_ioctl("IRQ_INFO argsz 32", d->fd, V_IRQINFO, irq_info_fields, &q, 16, 0);
  }
}

static void features(struct vdev *d) {
  u32 op[] = {1u << 18 | 1u << 16,
              1u << 18 | 1u << 17,
              1u << 18 | 3u << 16,
              1u << 18,
              1u << 16,
              1u << 17,
              0,
              3u << 16};
  const char *on[] = {"PROBE|GET", "PROBE|SET", "PROBE|GET|SET", "PROBE", "GET",
                      "SET",       "0",         "GET|SET"};
  for (u32 f = 0; f <= 15; f++)
    for (int k = 0; k < 8; k++) {
      if (f == 3 || f == 4 || f == 5)
        if (k >= 4)
          continue;
      struct feature q;
      memset(&q, 0, sizeof q);
      q.argsz = 8 + (k < 4 ? 0 : 128);
      q.flags = op[k] | f;
      rec_ioctl(named("%s FEATURE %u %s", d->key, f, on[k]), d->fd, V_FEATURE, feature_fields, &q,
                sizeof q, 0);
    }
  struct feature q;
  memset(&q, 0, sizeof q);
  q.argsz = 4;
  q.flags = 1 << 18 | 1 << 16;
  rec_ioctl("FEATURE argsz 4", d->fd, V_FEATURE, feature_fields, &q, sizeof q, 0);
  q.argsz = 7;
  rec_ioctl("FEATURE argsz 7", d->fd, V_FEATURE, feature_fields, &q, sizeof q, 0);
  q.argsz = 8;
  q.flags = 1 << 19 | 1 << 18;
  rec_ioctl("FEATURE unknown flag bit19", d->fd, V_FEATURE, feature_fields, &q, sizeof q, 0);
  q.flags = 1u << 16 | 10;
  q.argsz = 8;
  rec_ioctl("FEATURE GET 10 no data room", d->fd, V_FEATURE, feature_fields, &q, sizeof q, 0);
  q.flags = 1u << 17 | 10;
  q.argsz = 12;
  q.data[0] = 1;
  rec_ioctl("FEATURE SET 10 bus_master=1", d->fd, V_FEATURE, feature_fields, &q, sizeof q, 0);
  q.data[0] = 2;
  rec_ioctl("FEATURE SET 10 bus_master=2", d->fd, V_FEATURE, feature_fields, &q, sizeof q, 0);
  q.flags = 1u << 18 | 0xffff;
  rec_ioctl("FEATURE 0xffff PROBE", d->fd, V_FEATURE, feature_fields, &q, sizeof q, 0);
}

// Where region x begins in the device's file.
static u64 region(int x) {
  return (u64)x << 40;
}

static void rec_pread(const char *n, int fd, u64 off, u32 len) {
  u8 b[64] = {0};
  char in[96];
  snprintf(in, 96, "\"off\":\"0x%llx\",\"len\":%u", (unsigned long long)off, len);
  long r = pread(fd, b, len, off);
  int e = errno;
  char h[140] = "";
  for (u32 i = 0; i < len && i < 32 && r > 0; i++)
    sprintf(h + 2 * i, "%02x", b[i]);
  errno = e;
  rec(n, in, r, "\"data\":\"%s\"", h);
}

static void rec_pwrite(const char *n, int fd, u64 off, u32 len, u64 v) {
  char in[128];
  snprintf(in, 128, "\"off\":\"0x%llx\",\"len\":%u,\"val\":\"0x%llx\"", (unsigned long long)off,
           len, (unsigned long long)v);
  rec(n, in, pwrite(fd, &v, len, off), 0);
}

static void rec_mmap(const char *n, int fd, u64 off, size_t len, int prot, int fl) {
  char in[128];
  snprintf(in, 128, "\"off\":\"0x%llx\",\"len\":%zu,\"prot\":%d,\"shared\":%d",
           (unsigned long long)off, len, prot, fl == MAP_SHARED);
  void *m = mmap(0, len, prot, fl, fd, off);
  rec(n, in, m == MAP_FAILED ? -1 : 0, 0);
  if (m != MAP_FAILED)
    munmap(m, len);
}

#define DEV(s) named("%s " s, d->key)
#define BAR(s) named("%s BAR%d " s, d->key, b)

// d's regions through read, write and mmap, with its memory decoding off and on.
static void regions(struct vdev *d) {
  int f = d->fd;
  rec_pread(DEV("cfg read 64@0"), f, region(7), 64);
  rec_pread(DEV("cfg read 1@0"), f, region(7), 1);
  rec_pread(DEV("cfg read 2@1"), f, region(7) + 1, 2);
  rec_pread(DEV("cfg read 3@1"), f, region(7) + 1, 3);
  rec_pread(DEV("cfg read 8@0x3c"), f, region(7) + 0x3c, 8);
  rec_pread(DEV("cfg read 4@0xfe"), f, region(7) + 0xfe, 4);
  rec_pread(DEV("cfg read 4@0xfff"), f, region(7) + 0xfff, 4);
  rec_pread(DEV("cfg read 4@0x1000"), f, region(7) + 0x1000, 4);
  rec_pread(DEV("cfg read 4@0x100"), f, region(7) + 0x100, 4);
  rec_pread(DEV("cfg read bars"), f, region(7) + 0x10, 24);
  rec_pread(DEV("cfg read 16@0x34"), f, region(7) + 0x34, 12);
  rec_pread(DEV("read region 8 (VGA)"), f, region(8), 4);
  rec_pread(DEV("read region 9"), f, region(9), 4);
  rec_pread(DEV("read ROM"), f, region(6), 4);
  rec_pread(DEV("read len 0"), f, region(7), 0);
  rec_pwrite(DEV("cfg write vendor id"), f, region(7), 2, 0xffff);
  rec_pread(DEV("cfg re-read id"), f, region(7), 4);
  rec_pwrite(DEV("cfg write cmd = 0"), f, region(7) + 4, 2, 0);
  rec_pread(DEV("cfg re-read cmd"), f, region(7) + 4, 2);
  for (int b = 0; b < 6; b++) {
    struct region_info r = {32, 0, b};
    if (ioctl(f, V_REGION, &r) || !r.size) {
      rec_pread(DEV("unimplemented BAR read"), f, region(b), 4);
      rec_mmap(DEV("unimplemented BAR mmap"), f, region(b), 4096, 3, MAP_SHARED);
      continue;
    }
    rec_pread(BAR("read, mem decode off"), f, region(b), 4);
    rec_mmap(BAR("mmap, mem decode off"), f, region(b), 4096, 3, MAP_SHARED);
  }
  rec_pwrite(DEV("cfg write cmd = 7"), f, region(7) + 4, 2, 7);
  rec_pread(DEV("cfg re-read cmd"), f, region(7) + 4, 2);
  for (int b = 0; b < 6; b++) {
    struct region_info r = {32, 0, b};
    if (ioctl(f, V_REGION, &r) || !r.size)
      continue;
    rec_pread(BAR("read 4@0"), f, region(b), 4);
    rec_pread(BAR("read 4@2"), f, region(b) + 2, 4);
    rec_pread(BAR("read 8@0"), f, region(b), 8);
    rec_pread(BAR("read 8@size-4"), f, region(b) + r.size - 4, 8);
    rec_pread(BAR("read 4@size"), f, region(b) + r.size, 4);
    rec_mmap(BAR("mmap 4K shared rw"), f, region(b), 4096, 3, MAP_SHARED);
    rec_mmap(BAR("mmap whole"), f, region(b), r.size, 3, MAP_SHARED);
    rec_mmap(BAR("mmap private"), f, region(b), 4096, 1, MAP_PRIVATE);
    rec_mmap(BAR("mmap size+4096"), f, region(b), r.size + 4096, 3, MAP_SHARED);
    rec_mmap(BAR("mmap @size"), f, region(b) + ((r.size + 4095) & ~4095ull), 4096, 3, MAP_SHARED);
    rec_mmap(BAR("mmap exec"), f, region(b), 4096, 5, MAP_SHARED);
  }
  rec_mmap(DEV("cfg mmap"), f, region(7), 4096, 1, MAP_SHARED);
  rec_mmap(DEV("ROM mmap"), f, region(6), 4096, 1, MAP_SHARED);
  rec_mmap(DEV("region 9 mmap"), f, region(9), 4096, 1, MAP_SHARED);
  rec(DEV("lseek end"), "", lseek(f, 0, SEEK_END), 0);
  {
    struct pollfd p = {f, POLLIN | POLLOUT, 0};
    int r = poll(&p, 1, 0);
    rec(DEV("poll"), "", r, "\"revents\":%d", p.revents);
  }
  {
    u8 b[4];
    rec(DEV("read() at pos 0"), "", read(f, b, 4), 0);
  }
}

#define IRQ(s) named("%s idx%d(count %u) " s, d->key, x, q.count)

// SET_IRQS on every index of d, with eventfds that are read back.
static void irqs(struct vdev *d) {
  int f = d->fd, e = eventfd(0, EFD_NONBLOCK), e2 = eventfd(0, EFD_NONBLOCK),
      nf = open("/dev/null", O_RDWR);
  set_irqs(DEV("argsz 19"), f, 19, TRIGGER | NONE, 0, 0, 0, -1, -1);
  set_irqs(DEV("argsz 20 TRIGGER|NONE idx0 count0 (disable, nothing on)"), f, 20, TRIGGER | NONE, 0,
           0, 0, -1, -1);
  set_irqs(DEV("flags 0"), f, 20, 0, 0, 0, 0, -1, -1);
  set_irqs(DEV("two actions"), f, 24, TRIGGER | MASK | NONE, 0, 0, 1, -1, -1);
  set_irqs(DEV("two data"), f, 24, TRIGGER | NONE | BOOL, 0, 0, 1, -1, -1);
  set_irqs(DEV("unknown flag 64"), f, 24, 64 | TRIGGER | NONE, 0, 0, 1, -1, -1);
  set_irqs(DEV("index 5"), f, 24, TRIGGER | NONE, 5, 0, 0, -1, -1);
  set_irqs(DEV("index 7"), f, 24, TRIGGER | NONE, 7, 0, 0, -1, -1);
  set_irqs(DEV("only action"), f, 24, TRIGGER, 0, 0, 0, -1, -1);
  set_irqs(DEV("only data"), f, 24, NONE, 0, 0, 0, -1, -1);
  set_irqs(DEV("eventfd, argsz 20, count 1 (short data)"), f, 20, TRIGGER | EVENTFD, 0, 0, 1, e,
           -1);
  set_irqs(DEV("BOOL, argsz 20 (short data)"), f, 20, TRIGGER | BOOL, 0, 0, 1, 1, -1);
  set_irqs(DEV("eventfd, argsz 23"), f, 23, TRIGGER | EVENTFD, 0, 0, 1, e, -1);
  for (int x = 0; x < 5; x++) {
    struct irq_info q = {16, 0, x};
    ioctl(f, V_IRQINFO, &q);
    set_irqs(IRQ("NONE trigger before enable, count1"), f, 20, TRIGGER | NONE, x, 0, 1, -1, -1);
    set_irqs(IRQ("mask NONE before enable"), f, 20, MASK | NONE, x, 0, 1, -1, -1);
    set_irqs(IRQ("start=count"), f, 24, TRIGGER | EVENTFD, x, q.count, 1, e, -1);
    set_irqs(IRQ("count=max+1"), f, 4096, TRIGGER | EVENTFD, x, 0, q.count + 1, e, -1);
    set_irqs(IRQ("start+count overflow"), f, 4096, TRIGGER | EVENTFD, x, 0xffffffff, 2, e, -1);
    set_irqs(IRQ("bad fd 9999"), f, 24, TRIGGER | EVENTFD, x, 0, 1, 9999, -1);
    set_irqs(IRQ("fd is /dev/null"), f, 24, TRIGGER | EVENTFD, x, 0, 1, nf, -1);
    set_irqs(IRQ("fd -1"), f, 24, TRIGGER | EVENTFD, x, 0, 1, -1, -1);
    set_irqs(IRQ("fd -2"), f, 24, TRIGGER | EVENTFD, x, 0, 1, -2, -1);
    set_irqs(IRQ("eventfd enable count1"), f, 24, TRIGGER | EVENTFD, x, 0, 1, e, -1);
    set_irqs(IRQ("enable again same fd"), f, 24, TRIGGER | EVENTFD, x, 0, 1, e, -1);
    read_eventfd(e);
    set_irqs(IRQ("loopback NONE"), f, 20, TRIGGER | NONE, x, 0, 1, -1, -1);
    rec_eventfd(IRQ("eventfd after loopback"), e);
    set_irqs(IRQ("loopback BOOL 1"), f, 21, TRIGGER | BOOL, x, 0, 1, 1, -1);
    rec_eventfd(IRQ("eventfd after BOOL 1"), e);
    set_irqs(IRQ("loopback BOOL 0"), f, 21, TRIGGER | BOOL, x, 0, 1, 0, -1);
    rec_eventfd(IRQ("eventfd after BOOL 0"), e);
    set_irqs(IRQ("mask NONE"), f, 20, MASK | NONE, x, 0, 1, -1, -1);
    set_irqs(IRQ("mask NONE twice"), f, 20, MASK | NONE, x, 0, 1, -1, -1);
    set_irqs(IRQ("unmask NONE"), f, 20, UNMASK | NONE, x, 0, 1, -1, -1);
    set_irqs(IRQ("unmask BOOL"), f, 21, UNMASK | BOOL, x, 0, 1, 1, -1);
    set_irqs(IRQ("unmask eventfd"), f, 24, UNMASK | EVENTFD, x, 0, 1, e2, -1);
    set_irqs(IRQ("unmask eventfd again"), f, 24, UNMASK | EVENTFD, x, 0, 1, e2, -1);
    set_irqs(IRQ("unmask eventfd -1"), f, 24, UNMASK | EVENTFD, x, 0, 1, -1, -1);
    set_irqs(IRQ("mask eventfd"), f, 24, MASK | EVENTFD, x, 0, 1, e2, -1);
    if (q.count > 1) {
      set_irqs(IRQ("extend to vector 1 (start 1)"), f, 24, TRIGGER | EVENTFD, x, 1, 1, e2, -1);
      set_irqs(IRQ("loopback vec1"), f, 20, TRIGGER | NONE, x, 1, 1, -1, -1);
      rec_eventfd(IRQ("eventfd2"), e2);
      set_irqs(IRQ("vector 1 off by -1"), f, 24, TRIGGER | EVENTFD, x, 1, 1, -1, -1);
      set_irqs(IRQ("loopback vec1 when off"), f, 20, TRIGGER | NONE, x, 1, 1, -1, -1);
      set_irqs(IRQ("vector 3 direct"), f, 24, TRIGGER | EVENTFD, x, q.count - 1, 1, e2, -1);
    }
    if (x < 2) {
      int y = x ? 0 : 2;
      struct irq_info z = {16, 0, y};
      ioctl(f, V_IRQINFO, &z);
      set_irqs(named("%s enable idx%d (count %u) while idx%d on", d->key, y, z.count, x), f, 24,
               TRIGGER | EVENTFD, y, 0, 1, e2, -1);
      set_irqs("  and disable it", f, 20, TRIGGER | NONE, y, 0, 0, -1, -1);
    }
    set_irqs(IRQ("-1 turns off single"), f, 24, TRIGGER | EVENTFD, x, 0, 1, -1, -1);
    set_irqs(IRQ("loopback after -1"), f, 20, TRIGGER | NONE, x, 0, 1, -1, -1);
    set_irqs(IRQ("disable NONE count0"), f, 20, TRIGGER | NONE, x, 0, 0, -1, -1);
    set_irqs(IRQ("disable again"), f, 20, TRIGGER | NONE, x, 0, 0, -1, -1);
    set_irqs(IRQ("disable start 1 count 0"), f, 20, TRIGGER | NONE, x, 1, 0, -1, -1);
    set_irqs(IRQ("DE count 0"), f, 20, TRIGGER | EVENTFD, x, 0, 0, -1, -1);
    set_irqs(IRQ("DB count 0"), f, 20, TRIGGER | BOOL, x, 0, 0, -1, -1);
  }
  close(e);
  close(e2);
  close(nf);
}

// One DMA of the edu device: its registers are source, destination, count, command (1: start,
// 2: from its own RAM, at bus address 0x40000).
static void edu_run_dma(struct vdev *d, u64 source, u64 destination, u64 count, u64 command) {
  u64 registers[] = {source, destination, count, command}, status;
  for (int i = 0; i < 4; i++)
    if (pwrite(d->fd, &registers[i], 8, 0x80 + 8 * i) != 8)
      rec("edu register write", "", -1, 0);
  for (int i = 0; i < 200; i++) {
    if (pread(d->fd, &status, 8, 0x98) != 8 || !(status & 1))
      break;
    usleep(5000);
  }
}

// Real DMA and interrupts, by the edu device d (it masks bus addresses to 28 bits).
static void test_edu_dma(struct vdev *d, int f) {
  section("edu-dma");
  u32 io = new_ioas(f);
  memset(BUF, 0, BUF_SIZE);
  for (int i = 0; i < 4096; i++)
    BUF[i] = i * 7;
  rec_pwrite("cmd=6", d->fd, region(7) + 4, 2, 6);
  rec_pread("edu id", d->fd, 0, 4);
  rec_pwrite("liveness write", d->fd, 4, 4, 0x12345678);
  rec_pread("liveness read", d->fd, 4, 4);
  map("src iova 1M", f, FIXED | RD, io, BUF, 4096, 0x100000);
  map("dst iova 2M", f, FIXED | RW, io, BUF + 8192, 4096, 0x200000);
  attach("attach edu", d->fd, 16, 0, io, 0, 0);
  edu_run_dma(d, 0x100000, 0x40000, 256, 1);
  edu_run_dma(d, 0x40000, 0x200000, 256, 3);
  rec("dma 256B iova1M->dev->iova2M", "", 0, "\"match\":%d,\"first\":%d",
      memcmp(BUF, BUF + 8192, 256) == 0, BUF[8193]);
  edu_run_dma(d, 0x40000, 0x100000, 256, 3);
  rec("dma write to READ-only mapping", "", 0, "\"changed\":%d", BUF[1] != 7);
  unmap("unmap dst", f, io, 0x200000, 4096);
  memset(BUF + 8192, 0, 4096);
  edu_run_dma(d, 0x40000, 0x200000, 256, 3);
  rec("dma to unmapped iova", "", 0, "\"changed\":%d", BUF[8193] != 0);
  map("dst again", f, FIXED | RW, io, BUF + 8192, 4096, 0x200000);
  rec_pwrite("cmd=2 (bus master off)", d->fd, region(7) + 4, 2, 2);
  edu_run_dma(d, 0x40000, 0x200000, 256, 3);
  rec("dma with bus master off", "", 0, "\"changed\":%d", BUF[8193] != 0);
  rec_pwrite("cmd=6", d->fd, region(7) + 4, 2, 6);
  edu_run_dma(d, 0x40000, 0x200000, 256, 3);
  rec("dma with bus master on", "", 0, "\"changed\":%d", BUF[8193] != 0);
  int e = eventfd(0, EFD_NONBLOCK);
  set_irqs("edu MSI on", d->fd, 24, TRIGGER | EVENTFD, 1, 0, 1, e, -1);
  rec_pwrite("raise irq", d->fd, 0x60, 4, 1);
  rec_eventfd("eventfd", e);
  rec_pread("irq status", d->fd, 0x24, 4);
  rec_pwrite("ack", d->fd, 0x64, 4, 1);
  set_irqs("edu MSI off", d->fd, 20, TRIGGER | NONE, 1, 0, 0, -1, -1);
  set_irqs("edu INTx on", d->fd, 24, TRIGGER | EVENTFD, 0, 0, 1, e, -1);
  rec_pwrite("raise irq", d->fd, 0x60, 4, 1);
  rec_eventfd("eventfd", e);
  rec_pread("cfg status/cmd while automasked", d->fd, region(7) + 4, 4);
  rec_pwrite("ack", d->fd, 0x64, 4, 1);
  rec_pwrite("raise again while automasked", d->fd, 0x60, 4, 1);
  rec_eventfd("eventfd (expect 0)", e);
  set_irqs("unmask", d->fd, 20, UNMASK | NONE, 0, 0, 1, -1, -1);
  rec_eventfd("eventfd after unmask", e);
  rec_pwrite("ack", d->fd, 0x64, 4, 1);
  set_irqs("edu INTx off", d->fd, 20, TRIGGER | NONE, 0, 0, 0, -1, -1);
  close(e);
  rec_ioctl_raw("RESET", d->fd, V_RESET, 0, "0");
  rec_pread("liveness after reset", d->fd, 4, 4);
  rec_pread("cmd after reset", d->fd, region(7) + 4, 2);
  edu_run_dma(d, 0x40000, 0x200000, 16, 3);
  rec("dma after reset without re-enabling BM", "", 0, "\"dst1\":%d", BUF[8193]);
  detach("detach edu", d->fd, 12, 0, 0);
  destroy("destroy edu ioas", f, io);
}
