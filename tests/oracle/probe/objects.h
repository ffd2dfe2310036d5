// The other objects of an iommufd, its options, its container calls and limits, without a device.

#pragma once

#include "calls.h"

static void test_option(void) {
  section("option");
  for (u16 op = 0; op < 3; op++) {
    option("RLIMIT_MODE", ifd, 0, op, 0, op == 0 ? 1 : 77);
  }
  option("RLIMIT_MODE get object_id=1", ifd, 0, 1, 1, 0);
  option("RLIMIT_MODE set 2 (ctx busy)", ifd, 0, 0, 0, 2);
  option("RLIMIT_MODE set 0", ifd, 0, 0, 0, 0);
  option("HUGE_PAGES get", ifd, 1, 1, ioas1, 77);
  option("HUGE_PAGES set 2", ifd, 1, 0, ioas1, 2);
  option("HUGE_PAGES set 0", ifd, 1, 0, ioas1, 0);
  option("HUGE_PAGES get", ifd, 1, 1, ioas1, 77);
  option("HUGE_PAGES set 1", ifd, 1, 0, ioas1, 1);
  option("HUGE_PAGES op 2", ifd, 1, 2, ioas1, 1);
  option("HUGE_PAGES bad id", ifd, 1, 1, 9999, 1);
  option("option 2", ifd, 2, 1, 0, 0);
  {
    struct option q = {24, 0, 1, 1, 0, 0};
    rec_ioctl("reserved", ifd, OPTION, option_fields, &q, 24, 0);
  }
}

static void test_option_fresh(void) {
  int f = open("/dev/iommu", O_RDWR);
  section("option-fresh");
  option("RLIMIT_MODE get fresh", f, 0, 1, 0, 77);
  option("RLIMIT_MODE set 1 fresh", f, 0, 0, 0, 1);
  option("RLIMIT_MODE get", f, 0, 1, 0, 77);
  option("RLIMIT_MODE set 2", f, 0, 0, 0, 2);
  option("RLIMIT_MODE set 0", f, 0, 0, 0, 0);
  close(f);
}

static void test_vfio_ioas(void) {
  section("vfio_ioas");
  static const char *names[] = {"GET", "SET", "CLEAR", "op 3"};
  for (u16 op = 0; op < 4; op++) {
    struct vfio_ioas q = {12, ioas2, op, 0};
    rec_ioctl(names[op], ifd, VFIO_IOAS, vfio_ioas_fields, &q, 12, 0);
    if (op == 1) {
      struct vfio_ioas g = {12, 0, 0, 0};
      rec_ioctl("GET after SET", ifd, VFIO_IOAS, vfio_ioas_fields, &g, 12, 0);
    }
  }
  {
    struct vfio_ioas q = {12, ioas2, 0, 1};
    rec_ioctl("reserved", ifd, VFIO_IOAS, vfio_ioas_fields, &q, 12, 0);
    struct vfio_ioas w = {12, 9999, 1, 0};
    rec_ioctl("SET bad id", ifd, VFIO_IOAS, vfio_ioas_fields, &w, 12, 0);
    struct vfio_ioas z = {12, 0, 0, 0};
    rec_ioctl("GET after CLEAR", ifd, VFIO_IOAS, vfio_ioas_fields, &z, 12, 0);
  }
}

static void test_map_file(void) {
  section("map_file");
  int mfd = syscall(SYS_memfd_create, "m", 0);
  if (ftruncate(mfd, 1 << 20))
    perror("ftruncate");
  struct map_file mf = {40, FIXED | RW, ioas3, mfd, 0, 65536, 0x8000000};
  rec_ioctl("memfd 64K", ifd, IOAS_MAP_FILE, map_file_fields, &mf, 40, 0);
  mf.iova = 0x8100000;
  mf.start = 0x1000;
  rec_ioctl("start 4K", ifd, IOAS_MAP_FILE, map_file_fields, &mf, 40, 0);
  mf.start = 0x10;
  mf.iova = 0x8200000;
  rec_ioctl("start misaligned", ifd, IOAS_MAP_FILE, map_file_fields, &mf, 40, 0);
  mf.start = (1 << 20) - 4096;
  mf.iova = 0x8300000;
  rec_ioctl("past EOF", ifd, IOAS_MAP_FILE, map_file_fields, &mf, 40, 0);
  mf.start = 0;
  mf.fd = -1;
  mf.iova = 0x8400000;
  rec_ioctl("fd -1", ifd, IOAS_MAP_FILE, map_file_fields, &mf, 40, 0);
  mf.fd = ifd;
  mf.iova = 0x8500000;
  rec_ioctl("fd = iommufd", ifd, IOAS_MAP_FILE, map_file_fields, &mf, 40, 0);
  int nf = open("/dev/null", O_RDWR);
  mf.fd = nf;
  mf.iova = 0x8600000;
  rec_ioctl("fd = /dev/null", ifd, IOAS_MAP_FILE, map_file_fields, &mf, 40, 0);
  int tf = open("/dev/shm/f", O_RDWR | O_CREAT, 0600);
  if (ftruncate(tf, 1 << 20))
    perror("ftruncate");
  mf.fd = tf;
  mf.iova = 0x8700000;
  mf.length = 4096;
  rec_ioctl("fd = tmpfs file", ifd, IOAS_MAP_FILE, map_file_fields, &mf, 40, 0);
  mf.fd = mfd;
  mf.flags = 8;
  rec_ioctl("bad flag", ifd, IOAS_MAP_FILE, map_file_fields, &mf, 40, 0);
  mf.flags = RW;
  mf.iova = 0;
  rec_ioctl("auto", ifd, IOAS_MAP_FILE, map_file_fields, &mf, 40, 0);
  mf.length = 0;
  rec_ioctl("len 0", ifd, IOAS_MAP_FILE, map_file_fields, &mf, 40, 0);
  close(nf);
  close(tf);
  close(mfd);
}

static void test_change_process(void) {
  section("change_process");
  {
    struct change_process q = {8, 0};
    rec_ioctl("with non-file mappings", ifd, CHANGE_PROCESS, change_process_fields, &q, 8, 0);
    q.resv = 1;
    rec_ioctl("reserved", ifd, CHANGE_PROCESS, change_process_fields, &q, 8, 0);
    int f = open("/dev/iommu", O_RDWR);
    struct change_process z = {8, 0};
    rec_ioctl("fresh ctx", f, CHANGE_PROCESS, change_process_fields, &z, 8, 0);
    close(f);
  }
}

static void test_faultq(void) {
  section("faultq");
  u8 tmp[64] = {0};
  {
    struct faultq q = {16, 0, 0, 0};
    if (!rec_ioctl("alloc", ifd, FAULTQ_ALLOC, faultq_fields, &q, 16, 0)) {
      int ff = q.out_fault_fd;
      fcntl(ff, F_SETFL, O_NONBLOCK);
      rec("read 64 nonblock", "", read(ff, tmp, 64), 0);
      rec("read 40 nonblock", "", read(ff, tmp, 40), 0);
      rec("read 0", "", read(ff, tmp, 0), 0);
      rec("read len 8", "", read(ff, tmp, 8), 0);
      rec("write 8 zero", "", write(ff, tmp, 8), 0);
      rec("write 4", "", write(ff, tmp, 4), 0);
      struct pollfd p = {ff, POLLIN | POLLOUT, 0};
      int r = poll(&p, 1, 0);
      rec("poll", "", r, "\"revents\":%d", p.revents);
      rec("pread", "", pread(ff, tmp, 64, 64), 0);
      destroy("destroy while fd open", ifd, q.out_fault_id);
      close(ff);
      destroy("destroy after close", ifd, q.out_fault_id);
    }
    q = (struct faultq){16, 1, 0, 0};
    rec_ioctl("flags=1", ifd, FAULTQ_ALLOC, faultq_fields, &q, 16, 0);
  }
}

static void test_bad_objects(void) {
  section("bad-objects");
  {
    struct hwpt_alloc h = {48, 0, 9999, ioas1};
    rec_ioctl("hwpt_alloc bad dev", ifd, HWPT_ALLOC, hwpt_alloc_fields, &h, 48, 0);
    h.dev_id = ioas1;
    rec_ioctl("hwpt_alloc dev=ioas id", ifd, HWPT_ALLOC, hwpt_alloc_fields, &h, 48, 0);
    h.flags = 0x100;
    rec_ioctl("hwpt_alloc unknown flag + bad dev", ifd, HWPT_ALLOC, hwpt_alloc_fields, &h, 48, 0);
    struct hw_info q = {40, 0, 9999};
    rec_ioctl("hw_info bad dev", ifd, GET_HW_INFO, hw_info_fields, &q, 40, 0);
    q.dev_id = ioas1;
    rec_ioctl("hw_info dev=ioas", ifd, GET_HW_INFO, hw_info_fields, &q, 40, 0);
    struct set_dirty s = {16, 1, ioas1, 0};
    rec_ioctl("set_dirty on ioas id", ifd, SET_DIRTY, set_dirty_fields, &s, 16, 0);
    s.hwpt_id = 9999;
    rec_ioctl("set_dirty bad id", ifd, SET_DIRTY, set_dirty_fields, &s, 16, 0);
    s.flags = 2;
    rec_ioctl("set_dirty bad flag", ifd, SET_DIRTY, set_dirty_fields, &s, 16, 0);
    struct viommu_alloc v = {40, 0, 0, 9999, 9999};
    rec_ioctl("viommu type 0", ifd, VIOMMU_ALLOC, viommu_alloc_fields, &v, 40, 0);
    v.type = 1;
    rec_ioctl("viommu type 1 bad dev", ifd, VIOMMU_ALLOC, viommu_alloc_fields, &v, 40, 0);
    v.flags = 1;
    rec_ioctl("viommu flags", ifd, VIOMMU_ALLOC, viommu_alloc_fields, &v, 40, 0);
  }
}

static void test_destroy(void) {
  section("destroy");
  destroy("id 0", ifd, 0);
  destroy("bad", ifd, 9999);
  destroy("U32_MAX", ifd, 0xffffffff);
  destroy("ioas with mappings", ifd, ioas3);
  destroy("twice", ifd, ioas3);
  {
    u32 x = ioas_alloc("id after destroy (reuse?)", ifd);
    destroy("it", ifd, x);
    u32 y = ioas_alloc("alloc again", ifd);
    destroy("it", ifd, y);
  }
  {
    struct ioas_map m = {40, FIXED | RW, ioas3, 0, (u64)BUF, 4096, 0x10000};
    rec_ioctl("map into destroyed", ifd, IOAS_MAP, ioas_map_fields, &m, 40, 0);
  }
}

static void test_compat(void) {
  section("compat");
  int cf = open("/dev/iommu", O_RDWR);
  rec_ioctl_raw("VFIO_GET_API_VERSION", cf, V_API, 0, "0");
  for (int e = 0; e <= 11; e++)
    rec_ioctl_raw(named("VFIO_CHECK_EXTENSION %d", e), cf, V_CHKEXT, (void *)(uintptr_t)e, "n");
  rec_ioctl_raw("VFIO_SET_IOMMU 1 (no compat ioas)", cf, V_SETIOMMU, (void *)1, "1");
  {
    u32 x[16] = {64};
    rec_ioctl_raw("VFIO_IOMMU_GET_INFO no ioas", cf, C_GET_INFO, x, "argsz 64");

    struct {
      u32 a, f;
      u64 v, i, s;
    } m = {32, 3, (u64)BUF, 0x10000, 4096};

    rec_ioctl_raw("VFIO_IOMMU_MAP_DMA no ioas", cf, C_MAP, &m, "4K");
    u32 ci = new_ioas(cf);
    struct vfio_ioas q = {12, ci, 1, 0};
    rec_ioctl("VFIO_IOAS SET", cf, VFIO_IOAS, vfio_ioas_fields, &q, 12, 0);
    rec_ioctl_raw("VFIO_SET_IOMMU 1", cf, V_SETIOMMU, (void *)1, "1");
    rec_ioctl_raw("VFIO_SET_IOMMU 3", cf, V_SETIOMMU, (void *)3, "3");
    rec_ioctl_raw("VFIO_SET_IOMMU 2", cf, V_SETIOMMU, (void *)2, "2");
    memset(x, 0, 64);
    x[0] = 64;
    rec_ioctl_raw("VFIO_IOMMU_GET_INFO", cf, C_GET_INFO, x, "argsz 64");
    rec("  info words", "", 0, "\"w\":[%u,%u,%u,%u,%u,%u]", x[0], x[1], x[2], x[3], x[4], x[5]);
    rec_ioctl_raw("VFIO_IOMMU_MAP_DMA", cf, C_MAP, &m, "4K");
    rec_ioctl_raw("VFIO_IOMMU_MAP_DMA again", cf, C_MAP, &m, "4K");

    struct {
      u32 a, f;
      u64 i, s;
    } un = {24, 0, 0x10000, 4096};

    rec_ioctl_raw("VFIO_IOMMU_UNMAP_DMA", cf, C_UNMAP, &un, "4K");
    rec_ioctl_raw("VFIO_IOMMU_UNMAP_DMA again", cf, C_UNMAP, &un, "4K");
    rec("  size out", "", 0, "\"size\":%llu", (unsigned long long)un.s);
  }
  close(cf);
}

static void test_vfio_vfio(void) {
  int f = open("/dev/vfio/vfio", O_RDWR);
  section("vfio-vfio");
  rec("open /dev/vfio/vfio", "", f < 0 ? -1 : 0, 0);
  if (f >= 0) {
    rec_ioctl_raw("API", f, V_API, 0, "0");
    struct ioas_alloc a = {12};
    rec_ioctl("IOAS_ALLOC on /dev/vfio/vfio", f, IOAS_ALLOC, ioas_alloc_fields, &a, 12, 0);
    option("RLIMIT_MODE get", f, 0, 1, 0, 77);
    close(f);
  }
}

static void test_limits(void) {
  section("limits");
  pid_t p = fork();
  if (!p) {
    drop_root();
    int f = ifd;
    u32 id = new_ioas(f);
    seq = 9000;
    map("nonroot memlock 64K: map 1M (no device)", f, FIXED | RW, id, BUF, 1 << 20, 0x10000);
    option("nonroot RLIMIT_MODE set 0", f, 0, 0, 0, 0);
    _exit(0);
  }
  waitpid(p, 0, 0);
}
