/* What is pinned, what may be, who pays, and what stays reachable (oracle: section map-attached,
 * and its answers for every protection). */
#define _GNU_SOURCE
#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "iommufs.h"
#include "charge.h"
#include "stats.h"
#include "test.h"

#define TMPFS_MAGIC 0x01021994

static uint64_t seed;
static struct iofs_mm *mm;
static const struct iofs_charge no_charge = {IOFS_CHARGE_NONE, 0, 0};

static char *map_memory(size_t length, int prot, int flags, int fd) {
  char *memory = mmap(NULL, length, prot, flags, fd, 0);
  CHECK(memory != MAP_FAILED);
  return memory;
}

static struct pages *user_pages(const void *memory, size_t length, int writable) {
  struct pages *pages;
  CHECK_EQ(pages_new_user(mm, &no_charge, (uintptr_t)memory, length, writable, &pages), 0);
  return pages;
}

static struct pages *file_pages(int fd, uint64_t start, size_t length) {
  struct pages *pages;
  CHECK_EQ(pages_new_file(mm, &no_charge, fd, start, length, 1, &pages), 0);
  return pages;
}

/* The result of pinning all of a source, which is undone. */
static int try_pin(struct pages *pages) {
  uint64_t last = pages->n_pages - 1;
  int err = pages_pin(pages, 0, last);
  CHECK_EQ(stats.pinned_pages, err ? 0 : pages->n_pages);
  if (!err)
    pages_unpin(pages, 0, last);
  pages_put(pages);
  CHECK_EQ(stats.pages + stats.pinned_pages + stats.source_maps, 0);
  return err;
}

static int try_user(const void *memory, size_t length, int writable) {
  return try_pin(user_pages(memory, length, writable));
}

static int move(struct pages *pages, uint64_t byte, void *buf, size_t length, int write) {
  struct copy_list list;
  uint64_t done;
  copy_list_init(&list);
  int err = pages_collect(pages, byte, length, &list);
  if (!err)
    err = copy_list_move(&list, buf, write, &done);
  copy_list_free(&list);
  return err;
}

static void test_pages_of_odd_ranges(void) {
  struct pages *pages = user_pages((void *)0x12345678, 0x1000, 1);
  CHECK_EQ(pages->base, 0x12345000);
  CHECK_EQ(pages->n_pages, 2);
  pages_put(pages);
  pages = user_pages((void *)0xfff, 1, 1);
  CHECK_EQ(pages->n_pages, 1);
  pages_put(pages);
  pages = user_pages((void *)0xfff, 2, 1);
  CHECK_EQ(pages->n_pages, 2);
  pages_put(pages);
}

static void test_protection(void) {
  static const struct {
    int prot, readable, writable;
  } cases[] = {
      {PROT_NONE, 0, 0},
      {PROT_READ, 1, 0},
      {PROT_READ | PROT_WRITE, 1, 1},
      {PROT_WRITE, 0, 1},
      {PROT_EXEC, 0, 0},
      {PROT_READ | PROT_EXEC, 1, 0},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int flags = MAP_SHARED; flags <= MAP_PRIVATE; flags++) {
      char *memory = map_memory(8192, cases[i].prot, flags | MAP_ANONYMOUS, -1);
      CHECK_EQ(try_user(memory, 8192, 0), cases[i].readable ? 0 : -EFAULT);
      CHECK_EQ(try_user(memory, 8192, 1), cases[i].writable ? 0 : -EFAULT);
      munmap(memory, 8192);
    }
}

static void test_holes(void) {
  char *memory = map_memory(3 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  munmap(memory + PAGE_SIZE, PAGE_SIZE);
  CHECK_EQ(try_user(memory, PAGE_SIZE, 1), 0);
  CHECK_EQ(try_user(memory, PAGE_SIZE + 1, 1), -EFAULT);
  CHECK_EQ(try_user(memory + 2 * PAGE_SIZE - 1, 1, 1), -EFAULT);
  CHECK_EQ(try_user(NULL, 1, 0), -EFAULT);
  CHECK_EQ(try_user((void *)0xffff888000000000, PAGE_SIZE, 0), -EFAULT);
  CHECK_EQ(try_user((void *)-8192, PAGE_SIZE, 0), -EFAULT);
  munmap(memory, PAGE_SIZE);
  munmap(memory + 2 * PAGE_SIZE, PAGE_SIZE);
}

static void check_file_mapping(int fd, int prot, int flags, int read_result, int write_result) {
  char *memory = map_memory(8192, prot, flags, fd);
  CHECK_EQ(try_user(memory, 8192, 0), read_result);
  CHECK_EQ(try_user(memory, 8192, 1), write_result);
  munmap(memory, 8192);
}

static void test_mapped_files(void) {
  char path[] = "/var/tmp/iommufs-XXXXXX";
  int zero = open("/dev/zero", O_RDWR), memory = memfd_create("test", 0), disk = mkstemp(path);
  struct statfs fs;
  int rw = PROT_READ | PROT_WRITE;
  check_file_mapping(zero, rw, MAP_PRIVATE, 0, 0);
  check_file_mapping(zero, rw, MAP_SHARED, 0, 0);
  check_file_mapping(zero, PROT_READ, MAP_PRIVATE, 0, -EFAULT);
  CHECK_EQ(ftruncate(memory, 4096), 0);
  check_file_mapping(memory, rw, MAP_SHARED, -EFAULT, -EFAULT); /* past the end */
  check_file_mapping(memory, rw, MAP_PRIVATE, -EFAULT, -EFAULT);
  CHECK_EQ(ftruncate(memory, 4097), 0); /* the page of the end counts as a whole */
  check_file_mapping(memory, rw, MAP_SHARED, 0, 0);
  check_file_mapping(memory, PROT_READ, MAP_SHARED, 0, -EFAULT);
  check_file_mapping(memory, rw, MAP_PRIVATE, 0, 0);
  check_file_mapping(memory, PROT_READ, MAP_PRIVATE, 0, -EFAULT);
  /* A file system that writes back would not know what devices wrote. */
  CHECK_EQ(ftruncate(disk, 8192) | fstatfs(disk, &fs), 0);
  check_file_mapping(disk, rw, MAP_SHARED, 0, fs.f_type == TMPFS_MAGIC ? 0 : -EFAULT);
  check_file_mapping(disk, rw, MAP_PRIVATE, 0, 0);
  CHECK_EQ(ftruncate(disk, 4096), 0);
  check_file_mapping(disk, rw, MAP_PRIVATE, -EFAULT, -EFAULT);
  unlink(path);
  close(zero);
  close(memory);
  close(disk);
}

/* Found in the list of mounts; that of memfds is no mount that anybody sees. */
static void test_mapped_files_of_a_tmpfs(void) {
  char path[] = "/dev/shm/iommufs-XXXXXX";
  int fd = mkstemp(path);
  struct statfs fs;
  CHECK(fd >= 0 && !fstatfs(fd, &fs) && !ftruncate(fd, 8192) && !unlink(path));
  check_file_mapping(fd, PROT_READ | PROT_WRITE, MAP_SHARED, 0,
                     fs.f_type == TMPFS_MAGIC ? 0 : -EFAULT);
  if (fs.f_type == TMPFS_MAGIC)
    CHECK_EQ(try_pin(file_pages(fd, 0, 8192)), 0);
  close(fd);
}

static void test_forbidden_devices(void) {
  struct vma vma;
  int fd = memfd_create("test", 0);
  CHECK_EQ(ftruncate(fd, 8192), 0);
  char *memory = map_memory(8192, PROT_READ, MAP_SHARED, fd);
  CHECK_EQ(mm_find_vma(mm, (uintptr_t)memory, &vma), 0);
  CHECK_EQ(try_user(memory, 8192, 0), 0);
  iofs_mm_forbid_device(vma.major, vma.minor + 1);
  CHECK_EQ(try_user(memory, 8192, 0), 0);
  iofs_mm_forbid_device(vma.major, vma.minor);
  CHECK_EQ(try_user(memory, 8192, 0), -EFAULT);
  munmap(memory, 8192);
  close(fd);
}

static void test_files(void) {
  int fd = memfd_create("test", MFD_ALLOW_SEALING), zero = open("/dev/zero", O_RDWR), pipes[2];
  char path[48], word[6] = "";
  CHECK_EQ(pipe(pipes) | ftruncate(fd, 8192), 0);
  CHECK_EQ(try_pin(file_pages(fd, 0, 8192)), 0);
  CHECK_EQ(try_pin(file_pages(fd, 4096, 4097)), -EINVAL);
  CHECK_EQ(try_pin(file_pages(zero, 0, 4096)), -EINVAL);
  CHECK_EQ(try_pin(file_pages(pipes[0], 0, 4096)), -EINVAL);
  CHECK_EQ(ftruncate(fd, 8191), 0);
  CHECK_EQ(try_pin(file_pages(fd, 0, 8192)), -EINVAL); /* to the byte */
  CHECK_EQ(ftruncate(fd, 8192), 0);
  /* A read-only descriptor does not make the memory read-only, nor does closing it matter. */
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  int only = open(path, O_RDONLY);
  struct pages *pages = file_pages(only, 4096, 4096);
  close(only);
  CHECK_EQ(pages_pin(pages, 0, 0), 0);
  CHECK_EQ(move(pages, 10, "hello", 6, 1), 0);
  CHECK(pread(fd, word, 6, 4096 + 10) == 6 && !strcmp(word, "hello"));
  pages_unpin(pages, 0, 0);
  pages_put(pages);
  /* A sealed one is pinned like any other. */
  CHECK_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
  CHECK_EQ(try_pin(file_pages(fd, 0, 8192)), 0);
  close(fd);
  close(zero);
  close(pipes[0]);
  close(pipes[1]);
}

static void test_shared_memory_outlives_its_mapping(void) {
  char *memory = map_memory(8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
  char buf[8] = "";
  struct pages *pages = user_pages(memory + 4000, 200, 1);
  strcpy(memory + 4094, "hello");
  CHECK_EQ(pages_pin(pages, 0, 1), 0);
  CHECK_EQ(stats.source_maps, 1);
  munmap(memory, 8192);
  CHECK_EQ(move(pages, 4094, buf, 6, 0), 0);
  CHECK(!strcmp(buf, "hello"));
  pages_unpin(pages, 0, 1);
  CHECK_EQ(move(pages, 4094, buf, 6, 0), -EFAULT); /* what is not pinned is looked for now */
  pages_put(pages);
  CHECK_EQ(stats.source_maps, 0);
}

static void test_private_memory_is_reached_in_the_client(void) {
  char *memory = map_memory(8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  char buf[8] = "";
  struct pages *pages = user_pages(memory, 8192, 1);
  CHECK_EQ(pages_pin(pages, 0, 1), 0);
  CHECK_EQ(stats.source_maps, 0);
  CHECK_EQ(move(pages, 4094, "hello", 6, 1), 0);
  CHECK(!strcmp(memory + 4094, "hello"));
  mprotect(memory, 8192, PROT_NONE); /* a pin does not care any more */
  CHECK_EQ(move(pages, 4094, buf, 6, 0), 0);
  CHECK(!strcmp(buf, "hello"));
  munmap(memory, 8192);
  CHECK_EQ(move(pages, 4094, buf, 6, 0), -EFAULT);
  pages_unpin(pages, 0, 1);
  pages_put(pages);
}

/* 1 GiB in three mappings: three questions, and the memory is as untouched as before. */
static void test_a_pin_costs_one_question_for_each_mapping(void) {
  size_t length = 1ull << 30, quarter = length / 4;
  char *memory = map_memory(length, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
  static unsigned char resident[1 << 18];
  CHECK_EQ(mprotect(memory + quarter, quarter, PROT_READ | PROT_WRITE | PROT_EXEC), 0);
  uint64_t before = mm_n_lookups();
  CHECK_EQ(try_user(memory, length, 1), 0);
  CHECK_EQ(mm_n_lookups() - before, 3);
  CHECK_EQ(mincore(memory, length, resident), 0);
  CHECK(!memchr(resident, 1, sizeof resident));
  munmap(memory, length);
}

static void test_many_mappings_share_one_window(void) {
  char *memory = map_memory(16 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
  struct pages *pages[16];
  for (int i = 0; i < 16; i++) {
    pages[i] = user_pages(memory + i * PAGE_SIZE, PAGE_SIZE, 1);
    CHECK_EQ(pages_pin(pages[i], 0, 0), 0);
  }
  CHECK_EQ(stats.source_maps, 1);
  for (int i = 0; i < 16; i++) {
    pages_unpin(pages[i], 0, 0);
    pages_put(pages[i]);
  }
  munmap(memory, 16 * PAGE_SIZE);
}

static void test_pages_are_paid_for_once_each(void) {
  struct iofs_charge charge = {IOFS_CHARGE_USER, 4321, getpid()};
  char *memory = map_memory(8 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  struct pages *one, *two;
  CHECK_EQ(pages_new_user(mm, &charge, (uintptr_t)memory, 8 * PAGE_SIZE, 1, &one), 0);
  CHECK_EQ(pages_new_user(mm, &charge, (uintptr_t)memory, 8 * PAGE_SIZE, 1, &two), 0);
  CHECK_EQ(charge_of_user(4321), 0);
  CHECK_EQ(pages_pin(one, 0, 5), 0);
  CHECK_EQ(pages_pin(one, 2, 7), 0);
  CHECK_EQ(charge_of_user(4321), 8);
  CHECK_EQ(pages_pin(two, 0, 7), 0); /* another source, although the memory is the same */
  CHECK_EQ(charge_of_user(4321), 16);
  pages_unpin(one, 0, 5);
  CHECK_EQ(charge_of_user(4321), 14);
  pages_unpin(two, 0, 7);
  pages_unpin(one, 2, 7);
  CHECK_EQ(charge_of_user(4321), 0);
  /* A hole is seen before the bill. */
  struct iofs_charge nobody = {IOFS_CHARGE_USER, 4321, getpid()};
  munmap(memory, PAGE_SIZE);
  struct pages *bad;
  CHECK_EQ(pages_new_user(mm, &nobody, (uintptr_t)memory, 1ull << 40, 1, &bad), 0);
  CHECK_EQ(pages_pin(bad, 0, (1ull << 28) - 1), -EFAULT);
  pages_put(bad);
  pages_put(one);
  pages_put(two);
  munmap(memory + PAGE_SIZE, 7 * PAGE_SIZE);
}

static void test_random_pins(void) {
  enum { N_PAGES = 64, N_PINS = 40 };
  struct iofs_charge charge = {IOFS_CHARGE_USER, 99, getpid()};
  struct {
    uint64_t first, last;
    int used;
  } pins[N_PINS] = {0};
  char *memory =
      map_memory(N_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
  struct pages *pages;
  /* Two kinds of memory, in turns. */
  for (int i = 8; i < N_PAGES; i += 16)
    mmap(memory + i * PAGE_SIZE, 4 * PAGE_SIZE, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  for (int i = 0; i < N_PAGES; i++)
    memset(memory + i * PAGE_SIZE, i, PAGE_SIZE);
  CHECK_EQ(pages_new_user(mm, &charge, (uintptr_t)memory, N_PAGES * PAGE_SIZE, 1, &pages), 0);
  for (int step = 0; step < 4000; step++) {
    int i = (int)(test_random(&seed) % N_PINS), users[N_PAGES] = {0}, n = 0;
    if (pins[i].used)
      pages_unpin(pages, pins[i].first, pins[i].last);
    else {
      pins[i].first = test_random(&seed) % N_PAGES;
      pins[i].last = pins[i].first + test_random(&seed) % (N_PAGES - pins[i].first);
      if (step % 7 == 0) {
        iofs_fail_allocation(test_random(&seed) % 4 + 1);
        int err = pages_pin(pages, pins[i].first, pins[i].last);
        iofs_fail_allocation(0);
        CHECK(!err || err == -ENOMEM);
        pins[i].used = err != 0; /* turned round below */
      } else
        CHECK_EQ(pages_pin(pages, pins[i].first, pins[i].last), 0);
    }
    pins[i].used = !pins[i].used;
    for (int j = 0; j < N_PINS; j++)
      for (uint64_t k = pins[j].first; pins[j].used && k <= pins[j].last; k++)
        users[k]++;
    for (int k = 0; k < N_PAGES; k++)
      n += users[k] > 0;
    CHECK_EQ(stats.pinned_pages, n);
    CHECK_EQ(charge_of_user(99), n);
    unsigned char buf[3 * PAGE_SIZE];
    uint64_t at = test_random(&seed) % ((N_PAGES - 3) * PAGE_SIZE);
    if (step % 8 == 0) {
      CHECK_EQ(move(pages, at, buf, sizeof buf, 0), 0);
      for (size_t k = 0; k < sizeof buf; k += 512)
        CHECK_EQ(buf[k], (at + k) / PAGE_SIZE);
    }
  }
  for (int i = 0; i < N_PINS; i++)
    if (pins[i].used)
      pages_unpin(pages, pins[i].first, pins[i].last);
  CHECK_EQ(stats.pinned_pages + stats.source_maps + charge_of_user(99), 0);
  pages_put(pages);
  munmap(memory, N_PAGES * PAGE_SIZE);
}

int main(int argc, char **argv) {
  seed = test_seed(argc, argv);
  CHECK_EQ(iofs_mm_open_process(getpid(), &mm), 0);
  RUN(test_pages_of_odd_ranges);
  RUN(test_protection);
  RUN(test_holes);
  RUN_WITH_RIGHTS(test_mapped_files);
  RUN_WITH_RIGHTS(test_mapped_files_of_a_tmpfs);
  RUN(test_files);
  RUN_WITH_RIGHTS(test_shared_memory_outlives_its_mapping);
  RUN(test_private_memory_is_reached_in_the_client);
  RUN_WITH_RIGHTS(test_many_mappings_share_one_window);
  RUN(test_a_pin_costs_one_question_for_each_mapping);
  RUN(test_pages_are_paid_for_once_each);
  RUN(test_random_pins);
  RUN(test_forbidden_devices); /* the last: the device is that of all memory files */
  iofs_mm_put(mm);
  CHECK_EQ(stats.mms, 0);
  return 0;
}
