// Sections with devices, in their order: from an unbound device to a fork.

#pragma once

#include "sweeps.h"

// The devices that the sections use; 0 where the guest has none.
static struct vdev *nvme, *nic0, *nic1, *testdev;
static struct vdev *edu, *edu_root; // behind the bridge, on the root bus

static void test_scan(void) {
  scan();
  section("scan");
  for (int i = 0; i < vdev_count; i++) {
    struct vdev *v = &vdev[i];
    char in[160];
    snprintf(in, sizeof in, "\"bdf\":\"%.15s\",\"key\":\"%.23s\",\"cdev\":\"%.63s\"", v->bdf,
             v->key, v->cdev);
    v->fd = open(v->cdev, O_RDWR);
    rec("open cdev", in, v->fd < 0 ? -1 : 0, 0);
  }
  nvme = find_vdev("nvme0");
  nic0 = find_vdev("e1000e0");
  nic1 = find_vdev("e1000e1");
  testdev = find_vdev("testdev0");
  for (int i = 0; i < vdev_count; i++)
    if (vdev[i].vd == 0x123411e8) {
      if (!strncmp(vdev[i].bdf, "0000:00:", 8))
        edu_root = &vdev[i];
      else
        edu = &vdev[i];
    }
}

static void test_unbound(void) {
  section("unbound");
  u8 t[8];
  struct dev_info di = {24};
  rec_ioctl("GET_INFO before bind", nvme->fd, V_INFO, dev_info_fields, &di, 24, 0);
  rec_ioctl_raw("RESET before bind", nvme->fd, V_RESET, 0, "0");
  hot_info("HOTINFO before bind", nvme->fd, sizeof(struct hotinfo));
  rec("pread before bind", "", pread(nvme->fd, t, 4, region(7)), 0);
  rec("pwrite before bind", "", pwrite(nvme->fd, t, 4, region(7)), 0);
  rec_mmap("mmap before bind", nvme->fd, 0, 4096, 3, MAP_SHARED);
  attach("attach before bind", nvme->fd, 16, 0, ioas1, 0, 0);
  detach("detach before bind", nvme->fd, 12, 0, 0);
  rec_ioctl_raw("unknown vfio ioctl before bind", nvme->fd, IOC(99), 0, "0");
  {
    struct feature q = {8, 1u << 18 | 1u << 16};
    rec_ioctl("FEATURE before bind", nvme->fd, V_FEATURE, feature_fields, &q, 8, 0);
  }
}

static void test_bind(void) {
  section("bind");
  bind_dev("argsz 0", nvme->fd, 0, 0, ifd, 0, 0);
  bind_dev("argsz 15", nvme->fd, 15, 0, ifd, 0, 0);
  bind_dev("flags 2", nvme->fd, 24, 2, ifd, 0, 0);
  bind_dev("iommufd -1", nvme->fd, 24, 0, -1, 0, 0);
  bind_dev("iommufd 9999", nvme->fd, 24, 0, 9999, 0, 0);
  bind_dev("iommufd=stdout", nvme->fd, 24, 0, 1, 0, 0);
  bind_dev("iommufd=cdev fd", nvme->fd, 24, 0, nvme->fd, 0, 0);
  rec_ioctl_raw("bind NULL", nvme->fd, V_BIND, 0, "NULL");
  bind_dev("flag TOKEN argsz 16", nvme->fd, 16, 1, ifd, 0, 0);
  bind_dev("flag TOKEN NULL uuid", nvme->fd, 24, 1, ifd, 0, 0);
  {
    memset(BUF, 0x11, 16);
    bind_dev("flag TOKEN valid ptr", nvme->fd, 24, 1, ifd, (u64)BUF, &nvme->devid);
  }
  if (!nvme->devid || nvme->devid == 0x5555)
    bind_dev("argsz 16 ok", nvme->fd, 16, 0, ifd, 0, &nvme->devid);
  bind_dev("twice", nvme->fd, 24, 0, ifd, 0, 0);
  {
    int f2 = open(nvme->cdev, O_RDWR);
    rec("second open of bound cdev", "", f2 < 0 ? -1 : 0, 0);
    if (f2 >= 0) {
      bind_dev("bind via second fd", f2, 24, 0, ifd, 0, 0);
      struct dev_info d2 = {24};
      rec_ioctl("GET_INFO on second (unbound) fd", f2, V_INFO, dev_info_fields, &d2, 24, 0);
      close(f2);
    }
    int f3 = open("/dev/iommu", O_RDWR);
    bind_dev("bind bound fd to another iommufd", nvme->fd, 24, 0, f3, 0, 0);
    close(f3);
  }
  destroy("destroy bound device id", ifd, nvme->devid);
  rec_ioctl_raw("unknown vfio ioctl after bind", nvme->fd, IOC(99), 0, "0");
  rec_ioctl_raw("ioctl type x", nvme->fd, ('x' << 8) | 107, 0, "0");
}

static void test_info(void) {
  section("info");
  info_sweep(nvme);
  if (nic0) {
    bind_dev("bind e1000e.0", nic0->fd, 24, 0, ifd, 0, &nic0->devid);
    info_sweep(nic0);
  }
}

static void test_group(void) {
  section("group");
  if (nic0 && nic1) {
    int f2 = open("/dev/iommu", O_RDWR);
    bind_dev("sibling fn1 bound to a different iommufd", nic1->fd, 24, 0, f2, 0, 0);
    close(f2);
    hot_info("HOTINFO e1000e.0, sibling not bound", nic0->fd, sizeof(struct hotinfo));
    hot_reset("HOT_RESET count0, sibling not opened/bound", nic0->fd, 12, 0, 0, -1);
    bind_dev("sibling fn1 same iommufd", nic1->fd, 24, 0, ifd, 0, &nic1->devid);
    hot_info("HOTINFO e1000e.0, sibling bound", nic0->fd, sizeof(struct hotinfo));
  }
  if (edu) {
    bind_dev("bind edu(behind bridge)", edu->fd, 24, 0, ifd, 0, &edu->devid);
    info_sweep(edu);
  }
  if (testdev) {
    bind_dev("bind testdev", testdev->fd, 24, 0, ifd, 0, &testdev->devid);
    info_sweep(testdev);
  }
  if (edu_root) {
    bind_dev("bind edu(root bus)", edu_root->fd, 24, 0, ifd, 0, &edu_root->devid);
  }
}

static u32 ioas_a, ioas_b; // of the sections from "attach" to "hwpt"

static void test_attach(void) {
  section("attach");
  u32 pt;
  ioas_a = ioas_alloc("ioas A", ifd);
  ioas_b = ioas_alloc("ioas B", ifd);
  attach("argsz 11", nvme->fd, 11, 0, ioas_a, 0, 0);
  attach("argsz 12", nvme->fd, 12, 0, ioas_a, 0, &pt);
  detach("detach argsz 8", nvme->fd, 8, 0, 0);
  attach("flags 2", nvme->fd, 16, 2, ioas_a, 0, 0);
  attach("pt 0", nvme->fd, 16, 0, 0, 0, 0);
  attach("pt 9999", nvme->fd, 16, 0, 9999, 0, 0);
  attach("pt = dev id", nvme->fd, 16, 0, nvme->devid, 0, 0);
  attach("A", nvme->fd, 16, 0, ioas_a, 0, &pt);
  attach("A again", nvme->fd, 16, 0, ioas_a, 0, 0);
  attach("replace B", nvme->fd, 16, 0, ioas_b, 0, 0);
  destroy("destroy attached IOAS B", ifd, ioas_b);
  destroy("destroy auto hwpt", ifd, pt);
  iova_ranges("ranges of attached", ifd, ioas_b, 16);
  iova_ranges("ranges of detached A", ifd, ioas_a, 16);
  detach("detach flags 2", nvme->fd, 12, 2, 0);
  detach("detach argsz 7", nvme->fd, 7, 0, 0);
  detach("detach", nvme->fd, 12, 0, 0);
  detach("detach twice", nvme->fd, 12, 0, 0);
  iova_ranges("B after detach", ifd, ioas_b, 16);
  attach("PASID attach", nvme->fd, 16, 1, ioas_a, 1, 0);
  detach("PASID detach", nvme->fd, 12, 1, 1);
  attach("hwpt pt_id of auto hwpt after detach", nvme->fd, 16, 0, pt, 0, 0);
  if (nic0 && nic1) {
    attach("e1000e.0 -> A", nic0->fd, 16, 0, ioas_a, 0, 0);
    attach("e1000e.1 -> B (same group)", nic1->fd, 16, 0, ioas_b, 0, 0);
    attach("e1000e.1 -> A", nic1->fd, 16, 0, ioas_a, 0, 0);
    attach("e1000e.0 replace -> B with sibling on A", nic0->fd, 16, 0, ioas_b, 0, 0);
    detach("detach .0", nic0->fd, 12, 0, 0);
    attach("e1000e.1 replace -> B alone", nic1->fd, 16, 0, ioas_b, 0, 0);
    detach("detach .1", nic1->fd, 12, 0, 0);
  }
}

static void test_map_attached(void) {
  section("map-attached");
  attach("nvme -> A", nvme->fd, 16, 0, ioas_a, 0, 0);
  iova_ranges("ranges", ifd, ioas_a, 16);
  map("good", ifd, FIXED | RW, ioas_a, BUF, 65536, 0x100000);
  map("hole", ifd, FIXED | RW, ioas_a, HOLE, 4096, 0x200000);
  map("half hole", ifd, FIXED | RW, ioas_a, BUF + BUF_SIZE - 4096, 8192, 0x200000);
  map("NULL", ifd, FIXED | RW, ioas_a, 0, 4096, 0x200000);
  map("ro page RW", ifd, FIXED | RW, ioas_a, ROB, 4096, 0x200000);
  map("ro page R", ifd, FIXED | RD, ioas_a, ROB, 4096, 0x201000);
  map("no prot", ifd, FIXED, ioas_a, BUF, 4096, 0x202000);
  map("write only", ifd, FIXED | WR, ioas_a, BUF, 4096, 0x203000);
  map("in MSI window", ifd, FIXED | RW, ioas_a, BUF, 4096, 0xfee00000);
  map("crossing MSI window", ifd, FIXED | RW, ioas_a, BUF, 8192, 0xfedff000);
  map("above width", ifd, FIXED | RW, ioas_a, BUF, 4096, 1ull << 48);
  map("top of width", ifd, FIXED | RW, ioas_a, BUF, 4096, (1ull << 48) - 4096);
  map("1<<39", ifd, FIXED | RW, ioas_a, BUF, 4096, 1ull << 39);
  map("auto 4K", ifd, RW, ioas_a, BUF, 4096, 0);
  map("auto 2M", ifd, RW, ioas_a, BUF, 2 << 20, 0);
  {
    int zf = open("/dev/zero", O_RDWR);
    void *m = mmap((void *)0x150000000000ull, 8192, 3, MAP_PRIVATE | MAP_FIXED, zf, 0);
    map("dev zero private", ifd, FIXED | RW, ioas_a, m, 8192, 0x300000);
    close(zf);
  }
  {
    int bf = open("/job/prog", O_RDONLY);
    void *q = mmap((void *)0x130000000000ull, 4096, PROT_READ, MAP_PRIVATE | MAP_FIXED, bf, 0);
    map("file private ro, RW map", ifd, FIXED | RW, ioas_a, q, 4096, 0x310000);
  }
  {
    struct region_info r = {32, 0, 0};
    ioctl(nvme->fd, V_REGION, &r);
    void *m = mmap((void *)0x140000000000ull, 4096, 3, MAP_SHARED | MAP_FIXED, nvme->fd, 0);
    map("map a BAR mmap (P2P)", ifd, FIXED | RW, ioas_a, m, 4096, 0x320000);
    munmap(m, 4096);
  }
  copy("copy A->A", ifd, FIXED | RW, ioas_a, ioas_a, 65536, 0x400000, 0x100000);
  unmap("unmap part", ifd, ioas_a, 0x100000, 4096);
  unmap("unmap src (copied)", ifd, ioas_a, 0x100000, 65536);
  struct iova_range rr[] = {{0xfee00000, 0xfee00fff}};
  allow_iovas("allow inside MSI", ifd, ioas_a, 1, rr);
  struct iova_range r2[] = {{0x100000, 0xffffff}};
  allow_iovas("allow ok", ifd, ioas_a, 1, r2);
  allow_iovas("allow clear", ifd, ioas_a, 0, 0);
  {
    u32 ioas_c = ioas_alloc("ioas C", ifd);
    struct iova_range r3[] = {{0xfee00000, 0xfee0ffff}};
    allow_iovas("allow MSI in C before attach", ifd, ioas_c, 1, r3);
    attach("attach C with allowed MSI (replace)", nvme->fd, 16, 0, ioas_c, 0, 0);
    allow_iovas("clear", ifd, ioas_c, 0, 0);
    map("map MSI window in C", ifd, FIXED | RW, ioas_c, BUF, 4096, 0xfee00000);
    attach("attach C with mapped MSI window", nvme->fd, 16, 0, ioas_c, 0, 0);
    unmap("all", ifd, ioas_c, 0, ~0ull);
    map("hole in C (detached)", ifd, FIXED | RW, ioas_c, HOLE, 4096, 0x10000);
    attach("attach C with unmapped user memory", nvme->fd, 16, 0, ioas_c, 0, 0);
    unmap("all", ifd, ioas_c, 0, ~0ull);
    option("HUGE_PAGES 0 on C", ifd, 1, 0, ioas_c, 0);
    option("HUGE_PAGES 0 on attached A", ifd, 1, 0, ioas_a, 0);
    destroy("destroy C", ifd, ioas_c);
  }
}

static void test_hw_info(void) {
  section("hw_info");
  {
    memset(BUF, 0xaa, 256);
    struct hw_info q = {40, 0, nvme->devid, 0, 0};
    rec_ioctl("no buffer", ifd, GET_HW_INFO, hw_info_fields, &q, 40, 0);
    u32 ls[] = {8, 16, 24, 32, 64};
    for (int i = 0; i < 5; i++) {
      memset(BUF, 0xaa, 256);
      q = (struct hw_info){40, 0, nvme->devid, ls[i], (u64)BUF};
      rec_ioctl("buffer", ifd, GET_HW_INFO, hw_info_fields, &q, 40, 0);
      char h[160] = "";
      for (int k = 0; k < 72; k++)
        sprintf(h + 2 * k, "%02x", BUF[k]);
      rec("  buffer bytes", "", 0, "\"hex\":\"%s\"", h);
    }
    q = (struct hw_info){40, 0, nvme->devid, 24, (u64)HOLE};
    rec_ioctl("bad buffer", ifd, GET_HW_INFO, hw_info_fields, &q, 40, 0);
    q = (struct hw_info){40, 0, nvme->devid, 8, 0};
    rec_ioctl("NULL buffer len 8", ifd, GET_HW_INFO, hw_info_fields, &q, 40, 0);
    q = (struct hw_info){40, 1, nvme->devid, 24, (u64)BUF, 1};
    rec_ioctl("INPUT_TYPE=1", ifd, GET_HW_INFO, hw_info_fields, &q, 40, 0);
    q = (struct hw_info){40, 1, nvme->devid, 24, (u64)BUF, 4};
    rec_ioctl("INPUT_TYPE=4", ifd, GET_HW_INFO, hw_info_fields, &q, 40, 0);
    q = (struct hw_info){40, 2, nvme->devid, 24, (u64)BUF};
    rec_ioctl("flags=2", ifd, GET_HW_INFO, hw_info_fields, &q, 40, 0);
    q = (struct hw_info){40, 0, nvme->devid, 0, 0};
    q.resv[0] = 1;
    rec_ioctl("reserved", ifd, GET_HW_INFO, hw_info_fields, &q, 40, 0);
    q = (struct hw_info){32, 0, nvme->devid, 0, 0};
    rec_ioctl("size 32", ifd, GET_HW_INFO, hw_info_fields, &q, 40, 0);
    if (edu) {
      q = (struct hw_info){40, 0, edu->devid, 24, (u64)BUF};
      rec_ioctl("edu (conventional PCI)", ifd, GET_HW_INFO, hw_info_fields, &q, 40, 0);
    }
  }
}

static void test_hwpt(void) {
  section("hwpt");
  u32 hwpt = 0;
  {
    u32 fl[] = {0, 1, 2, 4, 8, 16, 3, 6};
    for (int i = 0; i < 8; i++) {
      struct hwpt_alloc h = {48, fl[i], nvme->devid, ioas_a};
      if (!rec_ioctl(named("alloc flags %u on IOAS", fl[i]), ifd, HWPT_ALLOC, hwpt_alloc_fields, &h,
                     48, 0)) {
        if (!hwpt)
          hwpt = h.out_hwpt_id;
        if (fl[i] == 2) {
          struct set_dirty s = {16, 1, h.out_hwpt_id, 0};
          rec_ioctl("set_dirty enable", ifd, SET_DIRTY, set_dirty_fields, &s, 16, 0);
          struct get_dirty g = {48, h.out_hwpt_id, 0, 0, 0x400000, 65536, 4096, (u64)BUF};
          rec_ioctl("get_dirty", ifd, GET_DIRTY, get_dirty_fields, &g, 48, 0);
        }
      }
    }
    struct hwpt_alloc h = {24, 0, nvme->devid, ioas_a};
    rec_ioctl("size 24", ifd, HWPT_ALLOC, hwpt_alloc_fields, &h, 48, 0);
    h = (struct hwpt_alloc){48, 0, nvme->devid, ioas_a, 0, 1};
    rec_ioctl("reserved", ifd, HWPT_ALLOC, hwpt_alloc_fields, &h, 48, 0);
    h = (struct hwpt_alloc){48, 0, nvme->devid, ioas_a, 0, 0, 1, 24, (u64)BUF};
    rec_ioctl("data_type VTD_S1 on IOAS", ifd, HWPT_ALLOC, hwpt_alloc_fields, &h, 48, 0);
    h = (struct hwpt_alloc){48, 0, nvme->devid, ioas_a, 0, 0, 0, 24, (u64)BUF};
    rec_ioctl("data_type 0 with data", ifd, HWPT_ALLOC, hwpt_alloc_fields, &h, 48, 0);
    h = (struct hwpt_alloc){48, 0, nvme->devid, hwpt};
    rec_ioctl("on hwpt", ifd, HWPT_ALLOC, hwpt_alloc_fields, &h, 48, 0);
    h = (struct hwpt_alloc){48, 0, nvme->devid, ioas_a, 0, 0, 0, 0, 0, 5};
    rec_ioctl("fault_id w/o flag", ifd, HWPT_ALLOC, hwpt_alloc_fields, &h, 48, 0);
    if (hwpt) {
      struct set_dirty s = {16, 1, hwpt, 0};
      rec_ioctl("set_dirty on non-dirty hwpt", ifd, SET_DIRTY, set_dirty_fields, &s, 16, 0);
      s.flags = 0;
      rec_ioctl("set_dirty disable", ifd, SET_DIRTY, set_dirty_fields, &s, 16, 0);
      struct get_dirty g = {48, hwpt, 0, 0, 0x400000, 65536, 4096, (u64)BUF};
      rec_ioctl("get_dirty on non-dirty hwpt", ifd, GET_DIRTY, get_dirty_fields, &g, 48, 0);
      attach("attach nvme to hwpt H (replace)", nvme->fd, 16, 0, hwpt, 0, 0);
      destroy("destroy attached hwpt", ifd, hwpt);
      detach("detach", nvme->fd, 12, 0, 0);
      struct hwpt_alloc x = {48, 0, nvme->devid, ioas_a};
      rec_ioctl("alloc after detach", ifd, HWPT_ALLOC, hwpt_alloc_fields, &x, 48, 0);
      destroy("destroy IOAS A with hwpt on it", ifd, ioas_a);
      destroy("destroy hwpt", ifd, x.out_hwpt_id);
      destroy("destroy H", ifd, hwpt);
    }
  }
}

static void test_regions(void) {
  section("regions");
  regions(nvme);
  if (nic0)
    regions(nic0);
  if (testdev)
    regions(testdev);
  if (edu)
    regions(edu);
}

static void test_irqs(void) {
  section("irqs");
  irqs(nvme);
  if (edu)
    irqs(edu);
  if (nic0)
    irqs(nic0);
  if (testdev)
    irqs(testdev);
}

static void test_ioeventfd(void) {
  section("ioeventfd");
  {
    int e = eventfd(0, EFD_NONBLOCK);
    rec_pwrite("cmd 6", nvme->fd, region(7) + 4, 2, 6);
    struct ioeventfd q = {32, 4, 0x1000, 0, e};
    rec_ioctl("nvme doorbell 4B", nvme->fd, V_IOEVENTFD, ioeventfd_fields, &q, 32, 0);
    rec_ioctl("same again", nvme->fd, V_IOEVENTFD, ioeventfd_fields, &q, 32, 0);
    q.fd = -1;
    rec_ioctl("remove", nvme->fd, V_IOEVENTFD, ioeventfd_fields, &q, 32, 0);
    rec_ioctl("remove again", nvme->fd, V_IOEVENTFD, ioeventfd_fields, &q, 32, 0);
    q.fd = e;
    q.flags = 3;
    rec_ioctl("two sizes", nvme->fd, V_IOEVENTFD, ioeventfd_fields, &q, 32, 0);
    q.flags = 8;
    rec_ioctl("8B", nvme->fd, V_IOEVENTFD, ioeventfd_fields, &q, 32, 0);
    q.flags = 4;
    q.offset = 0x1002;
    rec_ioctl("unaligned", nvme->fd, V_IOEVENTFD, ioeventfd_fields, &q, 32, 0);
    q.offset = region(7);
    rec_ioctl("on cfg", nvme->fd, V_IOEVENTFD, ioeventfd_fields, &q, 32, 0);
    q.offset = 0x3000;
    rec_ioctl("on msix table", nvme->fd, V_IOEVENTFD, ioeventfd_fields, &q, 32, 0);
    q.argsz = 31;
    rec_ioctl("argsz 31", nvme->fd, V_IOEVENTFD, ioeventfd_fields, &q, 32, 0);
    close(e);
  }
}

static void test_features(void) {
  section("features");
  features(nvme);
  if (nic0)
    features(nic0);
}

static void test_reset(void) {
  section("reset");
  hot_info("nvme full", nvme->fd, sizeof(struct hotinfo));
  u32 az[] = {0, 11, 12, 19, 20, 28};
  for (int i = 0; i < 6; i++)
    hot_info("nvme argsz sweep", nvme->fd, az[i]);
  rec_ioctl_raw("nvme RESET", nvme->fd, V_RESET, 0, "0");
  if (nic0) {
    hot_info("e1000e.0", nic0->fd, sizeof(struct hotinfo));
    hot_info("e1000e.0 argsz 20", nic0->fd, 20);
    rec_ioctl_raw("e1000e RESET", nic0->fd, V_RESET, 0, "0");
  }
  if (testdev) {
    hot_info("testdev", testdev->fd, sizeof(struct hotinfo));
    rec_ioctl_raw("testdev RESET", testdev->fd, V_RESET, 0, "0");
  }
  if (edu) {
    hot_info("edu", edu->fd, sizeof(struct hotinfo));
    rec_ioctl_raw("edu RESET", edu->fd, V_RESET, 0, "0");
  }
  if (edu_root) {
    hot_info("edu root bus", edu_root->fd, sizeof(struct hotinfo));
    rec_ioctl_raw("edu root RESET", edu_root->fd, V_RESET, 0, "0");
    hot_reset("edu root HOT_RESET", edu_root->fd, 12, 0, 0, -1);
  }
  hot_reset("nvme argsz 11", nvme->fd, 11, 0, 0, -1);
  hot_reset("nvme flags 1", nvme->fd, 12, 1, 0, -1);
  hot_reset("nvme count 1 fd=ifd", nvme->fd, 16, 0, 1, ifd);
  hot_reset("nvme count 1 argsz 12", nvme->fd, 12, 0, 1, ifd);
  hot_reset("nvme count 0", nvme->fd, 12, 0, 0, -1);
  if (nic0)
    hot_reset("e1000e count 0 all owned", nic0->fd, 12, 0, 0, -1);
  if (testdev && edu) {
    hot_reset("testdev count 0 all owned", testdev->fd, 12, 0, 0, -1);
    close(edu->fd);
    edu->fd = open(edu->cdev, O_RDWR);
    hot_info("testdev after edu closed (implicit owned)", testdev->fd, sizeof(struct hotinfo));
    hot_reset("testdev count 0 after edu fd reopened unbound", testdev->fd, 12, 0, 0, -1);
    bind_dev("rebind edu: new devid", edu->fd, 24, 0, ifd, 0, &edu->devid);
  }
}

static void test_close(void) {
  section("close");
  close(nvme->fd);
  destroy("device id after close", ifd, nvme->devid);
  nvme->fd = open(nvme->cdev, O_RDWR);
  bind_dev("reopen + rebind", nvme->fd, 24, 0, ifd, 0, &nvme->devid);
  u32 Z = ioas_alloc("ioas", ifd);
  attach("attach", nvme->fd, 16, 0, Z, 0, 0);
  close(nvme->fd);
  destroy("ioas after device fd closed while attached", ifd, Z);
}

static void test_iommufd_close(void) {
  section("iommufd-close");
  int f2 = open("/dev/iommu", O_RDWR);
  nvme->fd = open(nvme->cdev, O_RDWR);
  bind_dev("bind", nvme->fd, 24, 0, f2, 0, 0);
  u32 id = new_ioas(f2);
  attach("attach", nvme->fd, 16, 0, id, 0, 0);
  close(f2);
  struct dev_info q = {24};
  rec_ioctl("GET_INFO after iommufd closed", nvme->fd, V_INFO, dev_info_fields, &q, 24, 0);
  attach("attach after iommufd closed", nvme->fd, 16, 0, id, 0, 0);
  detach("detach after iommufd closed", nvme->fd, 12, 0, 0);
  close(nvme->fd);
}

static void test_fork(void) {
  section("fork");
  int f2 = open("/dev/iommu", O_RDWR);
  nvme->fd = open(nvme->cdev, O_RDWR);
  bind_dev("bind", nvme->fd, 24, 0, f2, 0, 0);
  u32 id = new_ioas(f2);
  attach("attach", nvme->fd, 16, 0, id, 0, 0);
  pid_t p = fork();
  if (!p) {
    seq = 8000;
    map("child maps its own memory", f2, FIXED | RW, id, BUF, 4096, 0x100000);
    _exit(0);
  }
  waitpid(p, 0, 0);
  seq++;
  unmap("parent unmaps child's", f2, id, 0x100000, 4096);
  p = fork();
  if (!p) {
    seq = 8500;
    drop_root();
    map("nonroot memlock 64K, attached: map 1M", f2, FIXED | RW, id, BUF, 1 << 20, 0x200000);
    map("nonroot: map 32K", f2, FIXED | RW, id, BUF, 32768, 0x400000);
    map("nonroot: map another 32K", f2, FIXED | RW, id, BUF + 65536, 32768, 0x500000);
    map("nonroot: map 4K more", f2, FIXED | RW, id, BUF + 131072, 4096, 0x600000);
    _exit(0);
  }
  waitpid(p, 0, 0);
  close(nvme->fd);
  close(f2);
}
