// What all sections share: where the user's memory is, and a recorded call for each ioctl of an
// iommufd. Like j.h these rooms hold definitions, and are included once, by probe.c.

#pragma once

#include "j.h"

// User memory at fixed addresses, so that records do not change from run to run.
#define BUF ((u8 *)0x100000000000ull)
#define BUF_SIZE (64u << 20)
#define ROB ((u8 *)0x110000000000ull)  // a read-only page holding {12, 0, 0}
#define HOLE ((u8 *)0x120000000000ull) // nothing is mapped here

// Flags of IOAS_MAP, IOAS_COPY, IOAS_MAP_FILE.
#define FIXED 1
#define WR 2
#define RD 4
#define RW 6

// Flags of SET_IRQS.
#define TRIGGER 32
#define MASK 8
#define UNMASK 16
#define NONE 1
#define BOOL 2
#define EVENTFD 4

static int ifd;                 // the iommufd of all sections that do not open their own
static u32 ioas1, ioas2, ioas3; // made by the sections "ioas" and "allow"

// Runs after IOVA_RANGES: the ranges that it returned.
static void ranges_post(void *b, int r) {
  (void)r;
  struct iova_ranges *q = b;
  if (!q->allowed_iovas || errno == EFAULT)
    return;
  struct iova_range *a = (void *)(uintptr_t)q->allowed_iovas;
  if ((u8 *)a != BUF)
    return;
  add_out("\"ranges\":[");
  for (u32 i = 0; i < q->num_iovas && i < 16; i++)
    add_out("%s[\"0x%llx\",\"0x%llx\"]", i ? "," : "", (unsigned long long)a[i].start,
            (unsigned long long)a[i].last);
  add_out("]");
}

// Not recorded, unlike the others below.
static u32 new_ioas(int f) {
  struct ioas_alloc a = {12};
  ioctl(f, IOAS_ALLOC, &a);
  return a.out_ioas_id;
}

static u32 ioas_alloc(const char *n, int f) {
  struct ioas_alloc a = {12};
  rec_ioctl(n, f, IOAS_ALLOC, ioas_alloc_fields, &a, 12, 0);
  return a.out_ioas_id;
}

static int map(const char *n, int f, u32 flags, u32 id, void *va, u64 len, u64 iova) {
  struct ioas_map m = {sizeof m, flags, id, 0, (u64)va, len, iova};
  return rec_ioctl(n, f, IOAS_MAP, ioas_map_fields, &m, sizeof m, 0);
}

static int unmap(const char *n, int f, u32 id, u64 iova, u64 len) {
  struct ioas_unmap m = {sizeof m, id, iova, len};
  return rec_ioctl(n, f, IOAS_UNMAP, ioas_unmap_fields, &m, sizeof m, 0);
}

static int copy(const char *n, int f, u32 flags, u32 dst, u32 src, u64 len, u64 di, u64 si) {
  struct ioas_copy m = {sizeof m, flags, dst, src, len, di, si};
  return rec_ioctl(n, f, IOAS_COPY, ioas_copy_fields, &m, sizeof m, 0);
}

static int destroy(const char *n, int f, u32 id) {
  struct destroy d = {8, id};
  return rec_ioctl(n, f, DESTROY, destroy_fields, &d, 8, 0);
}

static int iova_ranges(const char *n, int f, u32 id, u32 num) {
  memset(BUF, 0, 4096);
  struct iova_ranges q = {sizeof q, id, num, 0, (u64)BUF, 0x77};
  return rec_ioctl(n, f, IOVA_RANGES, iova_ranges_fields, &q, sizeof q, ranges_post);
}

static int allow_iovas(const char *n, int f, u32 id, u32 num, struct iova_range *r) {
  struct allow_iovas q = {sizeof q, id, num, 0, (u64)BUF};
  if (r)
    memcpy(BUF, r, num * sizeof *r);
  return rec_ioctl(n, f, ALLOW_IOVAS, allow_iovas_fields, &q, sizeof q, 0);
}

static int option(const char *n, int f, u32 o, u16 op, u32 oid, u64 v) {
  struct option q = {sizeof q, o, op, 0, oid, v};
  return rec_ioctl(n, f, OPTION, option_fields, &q, sizeof q, 0);
}

// What an ordinary user may do: no privilege, 64K of locked memory.
static void drop_root(void) {
  struct rlimit limit = {65536, 65536};
  setrlimit(RLIMIT_MEMLOCK, &limit);
  if (setresuid(65534, 65534, 65534))
    perror("setresuid");
}
