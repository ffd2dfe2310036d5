// Address spaces without a device: making them, ranges, map, unmap, copy, allowed ranges.

#pragma once

#include "calls.h"

static void test_ioas(void) {
  section("ioas");
  ioas1 = ioas_alloc("ioas_alloc", ifd);
  ioas2 = ioas_alloc("ioas_alloc", ifd);
}

static void test_iova_ranges(void) {
  section("iova_ranges");
  iova_ranges("fresh num=8", ifd, ioas1, 8);
  iova_ranges("fresh num=0", ifd, ioas1, 0);
  iova_ranges("fresh num=1", ifd, ioas1, 1);
  iova_ranges("bad id", ifd, 9999, 8);
  iova_ranges("id 0", ifd, 0, 8);
  {
    struct iova_ranges q = {32, ioas1, 8, 1, (u64)BUF, 0};
    rec_ioctl("reserved=1", ifd, IOVA_RANGES, iova_ranges_fields, &q, 32, 0);
    q.resv = 0;
    q.allowed_iovas = (u64)HOLE;
    rec_ioctl("bad pointer", ifd, IOVA_RANGES, iova_ranges_fields, &q, 32, 0);
    q.allowed_iovas = 0;
    q.num_iovas = 0;
    rec_ioctl("NULL num=0", ifd, IOVA_RANGES, iova_ranges_fields, &q, 32, 0);
  }
}

static void test_map(void) {
  section("map");
  map("fixed 4K rw", ifd, FIXED | RW, ioas1, BUF, 4096, 0x10000);
  map("same again", ifd, FIXED | RW, ioas1, BUF, 4096, 0x10000);
  map("overlap tail", ifd, FIXED | RW, ioas1, BUF, 8192, 0xf000);
  map("iova 0", ifd, FIXED | RW, ioas1, BUF, 4096, 0);
  map("misaligned iova, aligned va (0x20800)", ifd, FIXED | RW, ioas1, BUF, 4096, 0x20800);
  map("misaligned iova 0x20001", ifd, FIXED | RW, ioas1, BUF, 4096, 0x20001);
  map("misaligned va", ifd, FIXED | RW, ioas1, BUF + 0x10, 4096, 0x30000);
  map("both misaligned same offset", ifd, FIXED | RW, ioas1, BUF + 0x800, 4096, 0x40800);
  map("length 0", ifd, FIXED | RW, ioas1, BUF, 0, 0x50000);
  map("length 1", ifd, FIXED | RW, ioas1, BUF, 1, 0x51000);
  map("length 4097", ifd, FIXED | RW, ioas1, BUF, 4097, 0x52000);
  map("length 0x1800", ifd, FIXED | RW, ioas1, BUF, 0x1800, 0x58000);
  map("flags 0 fixed only", ifd, FIXED, ioas1, BUF, 4096, 0x60000);
  map("read only", ifd, FIXED | RD, ioas1, BUF, 4096, 0x61000);
  map("write only", ifd, FIXED | WR, ioas1, BUF, 4096, 0x62000);
  map("unknown flag 8", ifd, FIXED | RW | 8, ioas1, BUF, 4096, 0x63000);
  map("unknown flag 8 bad id", ifd, FIXED | RW | 8, 9999, BUF, 4096, 0x63000);
  map("bad id", ifd, FIXED | RW, 9999, BUF, 4096, 0x63000);
  map("flags 0", ifd, 0, ioas1, BUF, 4096, 0);
  {
    struct ioas_map m = {40, FIXED | RW, ioas1, 1, (u64)BUF, 4096, 0x64000};
    rec_ioctl("reserved=1", ifd, IOAS_MAP, ioas_map_fields, &m, 40, 0);
  }
  map("iova overflow", ifd, FIXED | RW, ioas1, BUF, 8192, 0xfffffffffffff000ull);
  map("iova top page", ifd, FIXED | RW, ioas1, BUF, 4096, 0xfffffffffffff000ull);
  map("length U64_MAX", ifd, FIXED | RW, ioas1, BUF, ~0ull, 0x70000);
  map("length U64_MAX-4095 va 0", ifd, FIXED | RW, ioas1, 0, ~0ull - 4095, 0);
  map("va overflow", ifd, FIXED | RW, ioas1, (void *)0xfffffffffffff000ull, 8192, 0x70000);
  map("length 1<<63", ifd, FIXED | RW, ioas1, BUF, 1ull << 63, 0x100000000ull);
  map("va NULL", ifd, FIXED | RW, ioas1, 0, 4096, 0x71000);
  map("va hole", ifd, FIXED | RW, ioas1, HOLE, 4096, 0x72000);
  map("va kernel", ifd, FIXED | RW, ioas1, (void *)0xffff888000000000ull, 4096, 0x73000);
  map("ro page mapped writeable", ifd, FIXED | RW, ioas1, ROB, 4096, 0x74000);
  map("ro page mapped readonly", ifd, FIXED | RD, ioas1, ROB, 4096, 0x75000);
  map("auto 4K", ifd, RW, ioas1, BUF, 4096, 0xdeadbeef000);
  map("auto 4K again", ifd, RW, ioas1, BUF + 4096, 4096, 0);
  map("auto 64K", ifd, RW, ioas1, BUF, 65536, 0);
  map("auto 2M", ifd, RW, ioas1, BUF, 2 << 20, 0);
  map("auto 2M va offset 4K", ifd, RW, ioas1, BUF + 4096, 2 << 20, 0);
  map("auto 6M", ifd, RW, ioas1, BUF, 6 << 20, 0);
  map("auto 12K", ifd, RW, ioas1, BUF, 12288, 0);
  map("auto misaligned va", ifd, RW, ioas1, BUF + 0x10, 4096, 0);
  map("auto len 0", ifd, RW, ioas1, BUF, 0, 0);
  map("auto iova field misaligned", ifd, RW, ioas1, BUF, 4096, 0x123);
}

static void test_unmap(void) {
  section("unmap");
  unmap("exact", ifd, ioas1, 0x10000, 4096);
  unmap("again", ifd, ioas1, 0x10000, 4096);
  unmap("hole", ifd, ioas1, 0x5000000, 4096);
  {
    u32 io = ioas_alloc("fresh ioas for unmap", ifd);
    map("map 16K", ifd, FIXED | RW, io, BUF, 16384, 0x200000);
    unmap("head part", ifd, io, 0x200000, 4096);
    unmap("tail part", ifd, io, 0x203000, 4096);
    unmap("middle", ifd, io, 0x201000, 4096);
    unmap("superset", ifd, io, 0x1ff000, 6 * 4096);
    map("map A", ifd, FIXED | RW, io, BUF, 4096, 0x200000);
    map("map B adjacent", ifd, FIXED | RW, io, BUF + 4096, 4096, 0x201000);
    map("map C gap", ifd, FIXED | RW, io, BUF + 8192, 4096, 0x204000);
    unmap("A+B in one", ifd, io, 0x200000, 8192);
    map("map A", ifd, FIXED | RW, io, BUF, 4096, 0x200000);
    map("map B8K", ifd, FIXED | RW, io, BUF, 8192, 0x201000);
    unmap("A + half of B", ifd, io, 0x200000, 8192);
    unmap("A after failed", ifd, io, 0x200000, 4096);
    unmap("B + gap + C", ifd, io, 0x201000, 0x4000);
    map("map P", ifd, FIXED | RW, io, BUF, 4096, 0x600000);
    map("map Q 8K", ifd, FIXED | RW, io, BUF, 8192, 0x601000);
    unmap("P + half Q => error", ifd, io, 0x600000, 8192);
    unmap("was P unmapped by failed call?", ifd, io, 0x600000, 4096);
    unmap("Q", ifd, io, 0x601000, 8192);
    map("sub-page at 0x700800 len 0x100", ifd, FIXED | RW, io, BUF + 0x800, 0x100, 0x700800);
    map("sub-page neighbour 0x700900", ifd, FIXED | RW, io, BUF + 0x900, 0x100, 0x700900);
    map("overlap neighbour", ifd, FIXED | RW, io, BUF + 0x900, 0x100, 0x70087f);
    unmap("both, superset page", ifd, io, 0x700000, 4096);
    destroy("destroy", ifd, io);
  }
  unmap("length 0", ifd, ioas1, 0x61000, 0);
  unmap("length 1 on mapped", ifd, ioas1, 0x61000, 1);
  unmap("misaligned iova", ifd, ioas1, 0x61001, 4096);
  unmap("overflow", ifd, ioas1, 0xfffffffffffff000ull, 8192);
  unmap("length U64_MAX iova 4096", ifd, ioas1, 4096, ~0ull);
  unmap("length U64_MAX-1 iova 0", ifd, ioas1, 0, ~0ull - 1);
  unmap("bad id", ifd, 9999, 0, ~0ull);
  unmap("all: 0..U64_MAX", ifd, ioas1, 0, ~0ull);
  unmap("all again", ifd, ioas1, 0, ~0ull);
  unmap("0 len 0 empty", ifd, ioas1, 0, 0);
}

static void test_copy(void) {
  section("copy");
  map("src 16K", ifd, FIXED | RW, ioas1, BUF, 16384, 0x100000);
  copy("exact fixed", ifd, FIXED | RW, ioas2, ioas1, 16384, 0x300000, 0x100000);
  copy("again", ifd, FIXED | RW, ioas2, ioas1, 16384, 0x300000, 0x100000);
  copy("sub 4K from middle", ifd, FIXED | RW, ioas2, ioas1, 4096, 0x310000, 0x101000);
  copy("misaligned src", ifd, FIXED | RW, ioas2, ioas1, 4096, 0x320000, 0x101800);
  copy("past end", ifd, FIXED | RW, ioas2, ioas1, 16384, 0x330000, 0x101000);
  copy("unmapped src", ifd, FIXED | RW, ioas2, ioas1, 4096, 0x340000, 0x900000);
  copy("len 0", ifd, FIXED | RW, ioas2, ioas1, 0, 0x350000, 0x100000);
  copy("auto dst", ifd, RW, ioas2, ioas1, 16384, 0, 0x100000);
  copy("auto dst sub", ifd, RW, ioas2, ioas1, 4096, 0, 0x102000);
  copy("same ioas", ifd, FIXED | RW, ioas1, ioas1, 16384, 0x400000, 0x100000);
  copy("bad src id", ifd, FIXED | RW, ioas2, 9999, 4096, 0x360000, 0x100000);
  copy("bad dst id", ifd, FIXED | RW, 9999, ioas1, 4096, 0x360000, 0x100000);
  copy("unknown flag", ifd, FIXED | RW | 8, ioas2, ioas1, 4096, 0x360000, 0x100000);
  copy("flags 0 prot", ifd, FIXED, ioas2, ioas1, 4096, 0x360000, 0x100000);
  copy("length overflow", ifd, FIXED | RW, ioas2, ioas1, ~0ull, 0x360000, 0x100000);
  copy("src overflow", ifd, FIXED | RW, ioas2, ioas1, 8192, 0x360000, 0xfffffffffffff000ull);
  map("src2 adjacent 4K", ifd, FIXED | RW, ioas1, BUF + (1 << 20), 4096, 0x104000);
  copy("spanning two areas contiguous", ifd, FIXED | RW, ioas2, ioas1, 20480, 0x500000, 0x100000);
  unmap("dst: unmap part of spanned copy", ifd, ioas2, 0x500000, 16384);
  map("ro src", ifd, FIXED | RD, ioas1, ROB, 4096, 0x110000);
  copy("ro src to writable", ifd, FIXED | RW, ioas2, ioas1, 4096, 0x600000, 0x110000);
  copy("ro src to ro", ifd, FIXED | RD, ioas2, ioas1, 4096, 0x601000, 0x110000);
  copy("ro-flag map of rw mem to writable", ifd, FIXED | RW, ioas2, ioas1, 4096, 0x602000,
       0x100000);
}

static void test_allow(void) {
  section("allow");
  ioas3 = ioas_alloc("ioas_alloc", ifd);
  struct iova_range r1[] = {{0x100000, 0x1fffff}, {0x400000, 0x4fffff}};
  allow_iovas("two ranges", ifd, ioas3, 2, r1);
  iova_ranges("ranges after allow", ifd, ioas3, 8);
  map("auto after allow 4K", ifd, RW, ioas3, BUF, 4096, 0);
  map("auto 64K", ifd, RW, ioas3, BUF, 65536, 0);
  map("auto 1M", ifd, RW, ioas3, BUF, 1 << 20, 0);
  map("auto 1M third", ifd, RW, ioas3, BUF, 1 << 20, 0);
  map("fixed outside allowed", ifd, FIXED | RW, ioas3, BUF, 4096, 0x900000);
  struct iova_range r2[] = {{0x100000, 0x1fffff}, {0x180000, 0x2fffff}};
  allow_iovas("overlapping ranges", ifd, ioas3, 2, r2);
  struct iova_range r3[] = {{0x1fffff, 0x100000}};
  allow_iovas("last<start", ifd, ioas3, 1, r3);
  struct iova_range r4[] = {{0x100001, 0x1ffffe}};
  allow_iovas("unaligned", ifd, ioas3, 1, r4);
  struct iova_range r5[] = {{0x100000, 0x100000}};
  allow_iovas("one byte", ifd, ioas3, 1, r5);
  allow_iovas("num 0 (clear)", ifd, ioas3, 0, 0);
  map("auto after clear", ifd, RW, ioas3, BUF, 4096, 0);
  struct iova_range r6[] = {{0, ~0ull}};
  allow_iovas("all", ifd, ioas3, 1, r6);
  allow_iovas("bad id", ifd, 9999, 1, r6);
  {
    struct allow_iovas q = {24, ioas3, 1, 1, (u64)BUF};
    rec_ioctl("reserved", ifd, ALLOW_IOVAS, allow_iovas_fields, &q, 24, 0);
    q.resv = 0;
    q.allowed_iovas = (u64)HOLE;
    rec_ioctl("bad ptr", ifd, ALLOW_IOVAS, allow_iovas_fields, &q, 24, 0);
    q.num_iovas = 1 << 20;
    q.allowed_iovas = (u64)BUF;
    rec_ioctl("num 1<<20 zeros", ifd, ALLOW_IOVAS, allow_iovas_fields, &q, 24, 0);
  }
  struct iova_range r7[] = {{0x100000, 0x1fffff}, {0x200000, 0x2fffff}};
  allow_iovas("adjacent", ifd, ioas3, 2, r7);
  struct iova_range r8[] = {{0x400000, 0x4fffff}, {0x100000, 0x1fffff}};
  allow_iovas("descending", ifd, ioas3, 2, r8);
}
