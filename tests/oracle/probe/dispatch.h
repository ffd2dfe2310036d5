// How a call is found and its structure read: sections "fops" and "dispatch*".

#pragma once

#include "calls.h"

static void test_fops(void) {
  section("fops");
  struct stat st;
  u8 tmp[64] = {0};
  if (!fstat(ifd, &st))
    rec("fstat /dev/iommu", "", 0, "\"mode\":\"0%o\",\"ischr\":%d,\"major\":%d", st.st_mode,
        S_ISCHR(st.st_mode), (int)(st.st_rdev >> 8));
  {
    int f2 = open("/dev/iommu", O_RDONLY);
    rec("open O_RDONLY", "", f2 >= 0 ? 0 : -1, 0);
    struct ioas_alloc a = {12};
    rec_ioctl("ioas_alloc on O_RDONLY fd", f2, IOAS_ALLOC, ioas_alloc_fields, &a, 12, 0);
    close(f2);
  }
  rec("read", "", read(ifd, tmp, 8), 0);
  rec("write", "", write(ifd, tmp, 8), 0);
  rec("lseek", "", lseek(ifd, 0, SEEK_SET), 0);
  {
    struct pollfd p = {ifd, POLLIN | POLLOUT, 0};
    int r = poll(&p, 1, 0);
    rec("poll", "", r, "\"revents\":%d", p.revents);
  }
  {
    void *m = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ifd, 0);
    rec("mmap shared", "", m == MAP_FAILED ? -1 : 0, 0);
    m = mmap(0, 4096, PROT_READ, MAP_PRIVATE, ifd, 0);
    rec("mmap private", "", m == MAP_FAILED ? -1 : 0, 0);
    m = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, ifd, 0);
    rec("mmap shared exec", "", m == MAP_FAILED ? -1 : 0, 0);
  }
}

static void test_dispatch(void) {
  section("dispatch");
  u32 u = 8;
  struct ioas_alloc a = {12};
  rec_ioctl_raw("nr 0x7f", ifd, IOC(0x7f), &u, "&u32=8");
  rec_ioctl_raw("nr 0x96", ifd, IOC(0x96), &u, "&u32=8");
  rec_ioctl_raw("nr 0x9f", ifd, IOC(0x9f), &u, "&u32=8");
  rec_ioctl_raw("nr 0xa0 (test cmd)", ifd, IOC(0xa0), &u, "&u32=8");
  rec_ioctl_raw("nr 0xa1", ifd, IOC(0xa1), &u, "&u32=8");
  rec_ioctl_raw("nr 0", ifd, IOC(0), &u, "&u32=8");
  rec_ioctl_raw("nr 0x96 NULL", ifd, IOC(0x96), 0, "NULL");
  rec_ioctl_raw("nr 0x81 type x", ifd, ('x' << 8) | 0x81, &a, "&ioas_alloc");
  rec_ioctl_raw("_IOWR(0x81)", ifd, (3u << 30) | (12 << 16) | IOAS_ALLOC, &a, "&ioas_alloc");
  rec_ioctl_raw("_IOWR(0x81) NULL", ifd, (3u << 30) | (12 << 16) | IOAS_ALLOC, 0, "NULL");
  rec_ioctl_raw("ioas_alloc NULL", ifd, IOAS_ALLOC, 0, "NULL");
  rec_ioctl_raw("ioas_alloc hole", ifd, IOAS_ALLOC, HOLE, "unmapped");
  rec_ioctl_raw("ioas_alloc kernel addr", ifd, IOAS_ALLOC, (void *)0xffff800000000000ull,
                "kernel addr");
  for (u32 s = 0; s <= 16; s += (s < 12 ? 4 : 1)) {
    struct {
      struct ioas_alloc a;
      u32 pad;
    } x = {{s, 0, 0}, 0};

    rec_ioctl("ioas_alloc size sweep", ifd, IOAS_ALLOC, ioas_alloc_fields, &x, 16, 0);
  }
  {
    struct {
      struct ioas_alloc a;
      u32 pad;
    } x = {{16, 0, 0}, 1};

    rec_ioctl("ioas_alloc size 16 trailing nonzero", ifd, IOAS_ALLOC, ioas_alloc_fields, &x, 16, 0);
  }
  {
    struct {
      struct ioas_alloc a;
      u32 pad;
    } x = {{16, 1, 0}, 1};

    rec_ioctl("ioas_alloc size 16 trailing nonzero + flags=1", ifd, IOAS_ALLOC, ioas_alloc_fields,
              &x, 16, 0);
  }
  {
    memset(BUF, 0, 16384);
    struct ioas_alloc *p = (void *)BUF;
    u32 z[] = {4096, 4097, 8192, 0xffffffff};
    for (int i = 0; i < 4; i++) {
      memset(p, 0, 64);
      p->size = z[i];
      rec_ioctl("ioas_alloc big size, zero trailing", ifd, IOAS_ALLOC, ioas_alloc_fields, p, 12, 0);
    }
  }
  {
    struct ioas_alloc *p = (void *)(BUF + BUF_SIZE - 12);
    memset(p, 0, 12);
    p->size = 12;
    rec_ioctl("ioas_alloc at end of page", ifd, IOAS_ALLOC, ioas_alloc_fields, p, 12, 0);
    memset(p, 0, 12);
    p->size = 16;
    rec_ioctl("ioas_alloc size 16 running into hole", ifd, IOAS_ALLOC, ioas_alloc_fields, p, 12, 0);
  }
  {
    struct ioas_alloc x = {12, 1, 0};
    rec_ioctl("ioas_alloc flags=1", ifd, IOAS_ALLOC, ioas_alloc_fields, &x, 12, 0);
    x.flags = 0x80000000;
    rec_ioctl("ioas_alloc flags=1<<31", ifd, IOAS_ALLOC, ioas_alloc_fields, &x, 12, 0);
  }
  {
    struct ioas_alloc x = {12, 0, 1234};
    rec_ioctl("ioas_alloc out field preset 1234", ifd, IOAS_ALLOC, ioas_alloc_fields, &x, 12, 0);
  }
  {
    rec_ioctl_raw("ioas_alloc in read-only page", ifd, IOAS_ALLOC, ROB,
                  "read-only page holding {12,0,0}");
    struct ioas_alloc x = {12};
    rec_ioctl("ioas_alloc after failed copyback: next id", ifd, IOAS_ALLOC, ioas_alloc_fields, &x,
              12, 0);
  }

  static const struct {
    unsigned c;
    const char *n;
  } cm[] = {{DESTROY, "DESTROY"},
            {ALLOW_IOVAS, "ALLOW_IOVAS"},
            {IOAS_COPY, "IOAS_COPY"},
            {IOVA_RANGES, "IOVA_RANGES"},
            {IOAS_MAP, "IOAS_MAP"},
            {IOAS_UNMAP, "IOAS_UNMAP"},
            {OPTION, "OPTION"},
            {VFIO_IOAS, "VFIO_IOAS"},
            {HWPT_ALLOC, "HWPT_ALLOC"},
            {GET_HW_INFO, "GET_HW_INFO"},
            {SET_DIRTY, "SET_DIRTY"},
            {GET_DIRTY, "GET_DIRTY"},
            {HWPT_INVALIDATE, "HWPT_INVALIDATE"},
            {FAULTQ_ALLOC, "FAULTQ_ALLOC"},
            {IOAS_MAP_FILE, "IOAS_MAP_FILE"},
            {VIOMMU_ALLOC, "VIOMMU_ALLOC"},
            {VDEVICE_ALLOC, "VDEVICE_ALLOC"},
            {CHANGE_PROCESS, "CHANGE_PROCESS"},
            {VEVENTQ_ALLOC, "VEVENTQ_ALLOC"},
            {HWQ_ALLOC, "HWQ_ALLOC"},
            {NOIOMMU_GET_PA, "NOIOMMU_GET_PA"}};

  for (unsigned k = 0; k < sizeof cm / sizeof *cm; k++)
    for (u32 s = 0; s <= 56; s += 4) {
      memset(BUF, 0, 256);
      *(u32 *)BUF = s;
      char d[32];
      snprintf(d, 32, "zero struct, size=%u", s);
      rec_ioctl_raw(named("%s size sweep %u", cm[k].n, s), ifd, cm[k].c, BUF, d);
      if (s == 56) {
        memset(BUF, 0, 256);
        *(u32 *)BUF = 64;
        BUF[63] = 1;
        rec_ioctl_raw(named("%s size 64 byte63=1", cm[k].n), ifd, cm[k].c, BUF,
                      "size=64,last byte 1");
      }
    }
}
