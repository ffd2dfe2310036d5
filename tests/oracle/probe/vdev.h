// Devices: which the guest has, and a recorded call for each ioctl of theirs.

#pragma once

#include "j.h"

struct vdev {
  char bdf[16], cdev[64];
  u32 vd; // vendor << 16 | device
  int fd;
  u32 devid;
  char key[24]; // kind and ordinal number: nvme0, e1000e0, e1000e1...
};

static struct vdev vdev[16];

static int vdev_count;

static int by_bdf(const void *a, const void *b) {
  return strcmp(((struct vdev *)a)->bdf, ((struct vdev *)b)->bdf);
}

static u32 read_hex(const char *p) {
  FILE *f = fopen(p, "r");
  unsigned v = 0;
  if (f) {
    if (fscanf(f, "%x", &v) != 1)
      v = 0;
    fclose(f);
  }
  return v;
}

// Finds all devices bound to vfio-pci, in the order of their BDFs.
static void scan(void) {
  DIR *d = opendir("/sys/bus/pci/devices");
  struct dirent *e;
  while (d && (e = readdir(d))) {
    char p[512];
    snprintf(p, 512, "/sys/bus/pci/devices/%s/vfio-dev", e->d_name);
    DIR *v = opendir(p);
    if (!v)
      continue;
    struct dirent *x;
    while ((x = readdir(v)))
      if (!strncmp(x->d_name, "vfio", 4)) {
        struct vdev *q = &vdev[vdev_count++];
        snprintf(q->bdf, 16, "%.15s", e->d_name);
        snprintf(q->cdev, 64, "/dev/vfio/devices/%.32s", x->d_name);
        snprintf(p, 512, "/sys/bus/pci/devices/%s/vendor", e->d_name);
        u32 a = read_hex(p);
        snprintf(p, 512, "/sys/bus/pci/devices/%s/device", e->d_name);
        q->vd = a << 16 | read_hex(p);
        q->fd = -1;
      }
    closedir(v);
  }
  if (d)
    closedir(d);
  qsort(vdev, vdev_count, sizeof *vdev, by_bdf);

  struct {
    u32 vd;
    const char *n;
  } nm[] = {{0x1b360010, "nvme"},
            {0x808610d3, "e1000e"},
            {0x123411e8, "edu"},
            {0x1b360005, "testdev"},
            {0x808610c9, "igb"}};

  int c[5] = {0};
  for (int i = 0; i < vdev_count; i++) {
    strcpy(vdev[i].key, "other");
    for (int k = 0; k < 5; k++)
      if (nm[k].vd == vdev[i].vd) {
        snprintf(vdev[i].key, 24, "%s%d", nm[k].n, c[k]++);
      }
  }
}

static struct vdev *find_vdev(const char *k) {
  for (int i = 0; i < vdev_count; i++)
    if (!strcmp(vdev[i].key, k))
      return &vdev[i];
  return 0;
}

static int bind_dev(const char *n, int fd, u32 argsz, u32 fl, int iofd, u64 tok, u32 *out) {
  struct bind b = {argsz, fl, iofd, 0x5555, tok};
  int r = rec_ioctl(n, fd, V_BIND, bind_fields, &b, sizeof b, 0);
  if (out)
    *out = b.out_devid;
  return r;
}

static int attach(const char *n, int fd, u32 argsz, u32 fl, u32 pt, u32 pasid, u32 *out) {
  struct attach a = {argsz, fl, pt, pasid};
  int r = rec_ioctl(n, fd, V_ATTACH, attach_fields, &a, sizeof a, 0);
  if (out)
    *out = a.pt_id;
  return r;
}

static int detach(const char *n, int fd, u32 argsz, u32 fl, u32 pasid) {
  struct detach a = {argsz, fl, pasid};
  return rec_ioctl(n, fd, V_DETACH, detach_fields, &a, sizeof a, 0);
}

static u32 hexdump_n; // size of the buffer that hex_post() dumps from byte 32 on

static void hex_post(void *b, int r) {
  if (r < 0 && errno != ENOSPC)
    return;
  add_out("\"tail\":\"");
  for (u32 i = 32; i < hexdump_n; i++)
    add_out("%02x", ((u8 *)b)[i]);
  add_out("\"");
}

static void hot_post(void *b, int r) {
  struct hotinfo *h = b;
  if (r < 0 && errno != ENOSPC)
    return;
  add_out("\"devices\":[");
  if (!r)
    for (u32 i = 0; i < h->count && i < 32; i++)
      add_out("%s{\"id\":%d,\"seg\":%u,\"bus\":%u,\"devfn\":\"%x.%x\"}", i ? "," : "",
              (int)h->d[i].id, h->d[i].seg, h->d[i].bus, h->d[i].devfn >> 3, h->d[i].devfn & 7);
  add_out("]");
}

static int hot_info(const char *n, int fd, u32 argsz) {
  struct hotinfo h;
  memset(&h, 0, sizeof h);
  h.argsz = argsz;
  return rec_ioctl(n, fd, V_HOTINFO, hotinfo_fields, &h, sizeof h, hot_post);
}

static int hot_reset(const char *n, int fd, u32 argsz, u32 fl, u32 c, s32 f0) {
  struct hotreset h = {argsz, fl, c, {f0, -1, -1}};
  return rec_ioctl(n, fd, V_HOTRESET, hotreset_fields, &h, sizeof h, 0);
}

static int set_irqs(const char *n, int fd, u32 argsz, u32 fl, u32 idx, u32 st, u32 c, s32 d0,
                    s32 d1) {
  struct irq_set q;
  memset(&q, 0, sizeof q);
  q = (struct irq_set){argsz, fl, idx, st, c, {d0, d1, -1, -1}};
  return rec_ioctl(n, fd, V_SETIRQS, irq_set_fields, &q, 20, 0);
}

// The value of eventfd e, waiting a little; 0 if it was not signalled.
static u64 read_eventfd(int e) {
  u64 v = 0;
  struct pollfd p = {e, POLLIN, 0};
  if (poll(&p, 1, 100) <= 0 || read(e, &v, 8) != 8)
    return 0;
  return v;
}

static void rec_eventfd(const char *n, int e) {
  rec(n, "", 0, "\"v\":%llu", (unsigned long long)read_eventfd(e));
}
