// What a process does to memory that it has mapped: does the device see what it saw?

#pragma once

#include "scene.h"

// Shared memory keeps to what Linux does; private memory is in a section of its own.
static void test_changed_shared(void) {
  section("changed-shared");
  struct space s = new_dma_space();
  u8 *m = SHARED;
  m[7] = 1;
  rec_map("map", s, m, 4 * PAGE, 0x10000);
  IN_CHILD {
    rec("munmap", "", munmap(m, PAGE), 0);
    dma_write(0x10000, 2);
  }
  rec("the others see what is written", "", m[7], 0);
  rec("munmap", "", munmap(m + PAGE, PAGE), 0);
  rec_dma_read("is still there", 0x11000);
  map_pages(m + PAGE, 1, MAP_SHARED | MAP_ANONYMOUS, -1);
  m[PAGE + 7] = 3;
  rec_dma_read("another page at the address", 0x11000);
  rec_map("mapped, too", s, m + PAGE, PAGE, 0x20000);
  rec_dma_read("is the other page", 0x20000);
  m[2 * PAGE + 7] = 4;
  rec("mprotect to nothing", "", mprotect(m + 2 * PAGE, PAGE, 0), 0);
  rec_dma_read("is still read", 0x12000);
  dma_write(0x12000, 5);
  rec_map("map of what cannot be read", s, m + 2 * PAGE, PAGE, 0x30000);
  rec("mprotect back", "", mprotect(m + 2 * PAGE, PAGE, 3), 0);
  rec("it was written", "", m[2 * PAGE + 7], 0);
  m[3 * PAGE + 7] = 6;
  rec("MADV_DONTNEED", "", madvise(m + 3 * PAGE, PAGE, MADV_DONTNEED), 0);
  rec_dma_read("is still read", 0x13000);
  u8 *moved = mremap(m + 3 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, m + 32 * PAGE);
  rec("mremap", "", moved == m + 32 * PAGE ? 0 : -1, 0);
  dma_write(0x13000, 7);
  rec("moved memory is written", "", moved[7], 0);
  rec_map("where it was", s, m + 3 * PAGE, PAGE, 0x40000);
  rec_map("where it is", s, moved, PAGE, 0x40000);
  rec_dma_read("is read", 0x40000);
  munmap(moved, PAGE);
  map_pages(SHARED, 16, MAP_SHARED | MAP_ANONYMOUS, -1);
  rec("MADV_DONTFORK", "", madvise(SHARED, PAGE, MADV_DONTFORK), 0);
  IN_CHILD {
    rec_map("child maps what it has not", s, SHARED, PAGE, 0x50000);
    rec_map("child maps the next page", s, SHARED + PAGE, PAGE, 0x50000);
  }
  drop(s);
  map_pages(SHARED, 16, MAP_SHARED | MAP_ANONYMOUS, -1);
}

static void test_changed_private(void) {
  section("changed-private");
  struct space s = new_dma_space();
  fill(1);
  rec_map("map", s, BUF, 16 * PAGE, 0x10000);
  rec("mprotect to nothing", "", mprotect(BUF, PAGE, 0), 0);
  rec_dma_read("is still read", 0x10000);
  dma_write(0x10000, 5);
  rec("mprotect back", "", mprotect(BUF, PAGE, 3), 0);
  rec("it was written", "", BUF[7], 0);
  rec("mprotect to PROT_READ", "", mprotect(BUF + PAGE, PAGE, PROT_READ), 0);
  dma_write(0x11000, 6);
  rec("it was written", "", BUF[PAGE + 7], 0);
  rec_map("map for writing", s, BUF + PAGE, PAGE, 0x30000);
  BUF[2 * PAGE + 7] = 8;
  IN_CHILD {
    BUF[2 * PAGE + 7] = 9;
    dma_write(0x13000, 10);
    rec("child does not see what the parent's device writes", "", BUF[3 * PAGE + 7], 0);
  }
  rec_dma_read("what a child writes is not seen", 0x12000);
  rec("what was written", "", BUF[3 * PAGE + 7], 0);
  pid_t pid = begin_child();
  if (!pid) {
    pause();
    _exit(0);
  }
  BUF[4 * PAGE + 7] = 11;
  rec_dma_read("stores with a child that has the page, too", 0x14000);
  dma_write(0x14000, 12);
  rec("and back", "", BUF[4 * PAGE + 7], 0);
  kill(pid, SIGKILL);
  rec_end("child", pid);
  rec("MADV_DONTNEED", "", madvise(BUF + 5 * PAGE, PAGE, MADV_DONTNEED), 0);
  dma_write(0x15000, 13);
  rec("a new page, which is not written", "", BUF[5 * PAGE + 7], 0);
  BUF[5 * PAGE + 7] = 14;
  rec_dma_read("nor read", 0x15000);
  rec("munmap", "", munmap(BUF + 6 * PAGE, PAGE), 0);
  rec_dma_read("what was unmapped", 0x16000);
  map_pages(BUF + 6 * PAGE, 1, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  BUF[6 * PAGE + 7] = 15;
  rec_dma_read("what was mapped there before", 0x16000);
  rec_map("map the new one", s, BUF + 6 * PAGE, PAGE, 0x31000);
  rec_dma_read("which is read", 0x31000);
  u8 *to = BUF + 128 * PAGE;
  rec("mremap", "", mremap(BUF + 7 * PAGE, PAGE, PAGE, 3, to) == to ? 0 : -1, 0);
  dma_write(0x17000, 16);
  rec("moved memory is written", "", to[7], 0);
  drop(s);
  map_pages(BUF, ARENA_PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

// What nobody has written to before it is mapped, what is mapped for reading only, and files.
static void test_copy_on_write(void) {
  section("copy-on-write");
  struct space s = new_dma_space();
  map("map what was never touched, to be read", s.f, FIXED | RD, s.ioas, BUF, PAGE, 0x10000);
  rec_dma_read("nothing", 0x10000);
  BUF[7] = 1;
  rec_dma_read("what is stored later", 0x10000);
  fill(2);
  pid_t pid = begin_child();
  if (!pid) {
    pause();
    _exit(0);
  }
  map("map, to be read, what a child has, too", s.f, FIXED | RD, s.ioas, BUF + PAGE, PAGE, 0x11000);
  BUF[PAGE + 7] = 3;
  rec_dma_read("stores are seen", 0x11000);
  kill(pid, SIGKILL);
  rec_end("child", pid);
  int file = memfd_create("m", 0);
  u8 byte = 4;
  nobody_cares = ftruncate(file, 4 * PAGE);
  nobody_cares = pwrite(file, &byte, 1, 7) + pwrite(file, &byte, 1, PAGE + 7);
  u8 *m = map_pages(BUF + 16 * PAGE, 4, MAP_PRIVATE, file);
  map("map a private mapping of a file, to be read", s.f, FIXED | RD, s.ioas, m, PAGE, 0x20000);
  rec_dma_read("the file", 0x20000);
  m[7] = 5;
  rec_dma_read("stores are seen", 0x20000);
  rec_map("to be written", s, m + PAGE, PAGE, 0x21000);
  dma_write(0x21000, 6);
  rec("which is seen", "", m[PAGE + 7], 0);
  nobody_cares = pread(file, &byte, 1, PAGE + 7);
  rec("but is not in the file", "", byte, 0);
  close(file);
  drop(s);
  map_pages(BUF, ARENA_PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

// A file that changes its length.
static void test_changed_file(void) {
  section("changed-file");
  struct space s = new_dma_space();
  int file = memfd_create("m", 0);
  nobody_cares = ftruncate(file, 4 * PAGE);
  u8 *m = map_pages(BUF + 16 * PAGE, 4, MAP_SHARED, file);
  for (int i = 0; i < 4; i++)
    m[i * PAGE + 7] = (u8)(i + 1);
  map_file("map the file", s, file, 0, 4 * PAGE, 0x10000);
  rec_map("map the mapping", s, m, 4 * PAGE, 0x20000);
  rec("a hole", "", fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE), 0);
  rec_dma_read("page of the file that was there", 0x10000);
  rec_dma_read("of the mapping", 0x20000);
  m[7] = 11;
  rec_dma_read("and when there is another", 0x10000);
  rec("ftruncate", "", ftruncate(file, PAGE), 0);
  rec_dma_read("page that was cut off", 0x11000);
  rec_dma_read("of the mapping", 0x21000);
  map_file("map it again", s, file, PAGE, PAGE, 0x30000);
  rec_map("map the mapping again", s, m + PAGE, PAGE, 0x30000);
  rec("ftruncate", "", ftruncate(file, 4 * PAGE), 0);
  dma_write(0x12000, 12);
  rec("the file has new pages", "", m[2 * PAGE + 7], 0);
  map_file("map one", s, file, 3 * PAGE, PAGE, 0x30000);
  m[3 * PAGE + 7] = 13;
  rec_dma_read("the new page", 0x30000);
  close(file);
  rec_dma_read("the file is closed", 0x30000);
  drop(s);
  map_pages(BUF, ARENA_PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}
