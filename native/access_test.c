/* Accesses: pins, what they hold up, and rw without a pin. */
#define _GNU_SOURCE
#include "iommufs.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stats.h"
#include "test.h"

#define K4 4096ull
#define RW (IOFS_READ | IOFS_WRITE)
#define TOP UINT64_MAX

static struct iofs_mm *mm;
static struct iofs_iopt *iopt;
static struct iofs_access *access_;
static char *memory; /* 16 pages */
static const struct iofs_charge no_charge = {IOFS_CHARGE_NONE, 0, 0};

static void begin_with(int needs_pin_pages, int internal) {
  CHECK_EQ(iofs_mm_open_process(getpid(), &mm), 0);
  iopt = iofs_iopt_new();
  memory = mmap(NULL, 16 * K4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK_EQ(iofs_access_new(needs_pin_pages, internal, &access_), 0);
  CHECK_EQ(iofs_access_attach(access_, iopt), 0);
}

static void begin(void) { begin_with(1, 0); }

static void end(void) {
  CHECK_EQ(iofs_access_detach(access_), 0);
  iofs_access_put(access_);
  iofs_iopt_free(iopt);
  munmap(memory, 16 * K4);
  iofs_mm_put(mm);
  CHECK_EQ(stats.iopts + stats.pages + stats.pinned_pages + stats.accesses + stats.mms, 0);
}

static void map_at(const void *at, uint64_t length, uint32_t prot, uint64_t iova) {
  CHECK_EQ(iofs_iopt_map_user(iopt, mm, &no_charge, (uintptr_t)at, length, prot, 1, &iova), 0);
}

static struct iofs_range notified;

static int unmap(uint64_t iova, uint64_t length, uint64_t *unmapped) {
  notified = (struct iofs_range){0};
  return iofs_iopt_unmap(iopt, iova, length, unmapped, &notified);
}

static void test_attach_raises_the_alignment(void) {
  struct iofs_access *other;
  begin_with(0, 0);
  CHECK_EQ(iofs_iopt_alignment(iopt), 1);
  CHECK_EQ(iofs_access_attach(access_, iopt), -EINVAL);
  CHECK_EQ(iofs_access_new(1, 0, &other), 0);
  map_at(memory, 1, RW, 0x1000);
  CHECK_EQ(iofs_access_attach(other, iopt), -EADDRINUSE);
  uint64_t unmapped = 0;
  CHECK_EQ(unmap(0x1000, 1, &unmapped), 0);
  CHECK_EQ(iofs_access_attach(other, iopt), 0);
  CHECK_EQ(iofs_iopt_alignment(iopt), 4096);
  CHECK_EQ(iofs_access_detach(other), 0);
  CHECK_EQ(iofs_access_detach(other), 0);
  CHECK_EQ(iofs_iopt_alignment(iopt), 1);
  iofs_access_put(other);
  end();
}

static void test_pin_checks(void) {
  struct iofs_access *loose;
  begin();
  CHECK_EQ(iofs_access_pin(access_, 0x1000, 0, RW), -EINVAL);
  CHECK_EQ(iofs_access_pin(access_, TOP, 2, RW), -EOVERFLOW);
  CHECK_EQ(iofs_access_pin(access_, 0x1000, K4, RW), -ENOENT);
  CHECK_EQ(iofs_access_new(1, 0, &loose), 0);
  CHECK_EQ(iofs_access_pin(loose, 0x1000, 0, RW), -EINVAL); /* before it matters that */
  CHECK_EQ(iofs_access_pin(loose, 0x1000, K4, RW), -ENOENT); /* it is detached */
  iofs_access_put(loose);
  map_at(memory, 2 * K4, RW, 0x1000);
  map_at(memory + 2 * K4, K4, IOFS_READ, 0x3000);
  map_at(memory + 3 * K4, K4, IOFS_WRITE, 0x4000);
  map_at(NULL, K4, RW, 0x8000);
  CHECK_EQ(iofs_access_pin(access_, 0x1800, K4, IOFS_READ), -EINVAL);
  CHECK_EQ(iofs_access_pin(access_, 0x2000, 2 * K4, IOFS_WRITE), -EPERM);
  CHECK_EQ(iofs_access_pin(access_, 0x3000, 2 * K4, IOFS_READ), -EPERM);
  CHECK_EQ(iofs_access_pin(access_, 0x4000, 2 * K4, IOFS_WRITE), -ENOENT);
  CHECK_EQ(iofs_access_pin(access_, 0x8000, K4, IOFS_READ), -EFAULT);
  CHECK_EQ(stats.pinned_pages, 0);
  CHECK_EQ(iofs_access_pin(access_, 0x1000, 3 * K4, IOFS_READ), 0);
  CHECK_EQ(stats.pinned_pages, 3);
  CHECK_EQ(iofs_access_unpin(access_, 0x1000, 2 * K4), -EINVAL); /* not what was pinned */
  CHECK_EQ(iofs_access_detach(access_), -EBUSY);
  CHECK_EQ(iofs_access_unpin(access_, 0x1000, 3 * K4), 0);
  CHECK_EQ(iofs_access_unpin(access_, 0x1000, 3 * K4), -EINVAL);
  end();
}

static void test_pins_count(void) {
  begin();
  map_at(memory, 8 * K4, RW, 0x10000);
  for (int i = 0; i < 3; i++)
    CHECK_EQ(iofs_access_pin(access_, 0x10000, 2 * K4, RW), 0);
  CHECK_EQ(iofs_access_pin(access_, 0x11000, 4 * K4, RW), 0);
  CHECK_EQ(stats.pinned_pages, 5);
  for (int i = 0; i < 3; i++)
    CHECK_EQ(iofs_access_unpin(access_, 0x10000, 2 * K4), 0);
  CHECK_EQ(stats.pinned_pages, 4);
  CHECK_EQ(iofs_access_unpin(access_, 0x11000, 4 * K4), 0);
  end();
}

static void test_unmap_waits_for_pins(void) {
  uint64_t unmapped = 0;
  begin();
  map_at(memory, K4, RW, 0x10000);
  map_at(memory, 2 * K4, RW, 0x11000);
  map_at(memory, K4, RW, 0x13000);
  CHECK_EQ(iofs_access_pin(access_, 0x12000, K4, RW), 0);
  CHECK_EQ(unmap(0x10000, 4 * K4, &unmapped), 1);
  CHECK(notified.start == 0x11000 && notified.last == 0x12fff);
  CHECK_EQ(unmapped, K4);
  CHECK_EQ(iofs_access_pin(access_, 0x11000, K4, RW), -EINVAL); /* it is on its way out */
  CHECK_EQ(iofs_access_rw(access_, 0x11000, memory, 1, 0), -EINVAL);
  CHECK_EQ(iofs_iopt_cut(iopt, 0x11fff), -EBUSY);
  CHECK_EQ(iofs_access_unpin(access_, 0x12000, K4), 0);
  CHECK_EQ(unmap(0x10000, 4 * K4, &unmapped), 0);
  CHECK_EQ(unmapped, 4 * K4);
  end();
}

static void test_an_access_that_never_lets_go(void) {
  uint64_t unmapped = 0;
  int n = 0, result;
  begin();
  map_at(memory, K4, RW, 0x10000);
  CHECK_EQ(iofs_access_pin(access_, 0x10000, K4, RW), 0);
  while ((result = iofs_iopt_unmap_all(iopt, &unmapped, &notified)) == 1)
    n++;
  CHECK_EQ(result, -EDEADLK);
  CHECK_EQ(n, 100);
  CHECK_EQ(iofs_access_unpin(access_, 0x10000, K4), 0);
  CHECK_EQ(iofs_iopt_unmap_all(iopt, &unmapped, &notified), 0);
  CHECK_EQ(unmapped, K4);
  end();
}

static void test_an_internal_access_forbids_to_unmap(void) {
  uint64_t unmapped = 0;
  begin_with(0, 1);
  CHECK_EQ(iofs_iopt_alignment(iopt), 4096);
  map_at(memory, 2 * K4, RW, 0x10000);
  CHECK_EQ(iofs_access_pin(access_, 0x10000, K4, IOFS_READ), 0);
  CHECK_EQ(unmap(0x10000, K4, &unmapped), -EBUSY); /* before it is seen to be a part */
  CHECK_EQ(iofs_iopt_cut(iopt, 0x10fff), -EINVAL);
  CHECK_EQ(iofs_access_unpin(access_, 0x10000, K4), 0);
  CHECK_EQ(unmap(0x10000, 2 * K4, &unmapped), 0);
  end();
}

static void test_rw(void) {
  char buf[2 * 4096] = "";
  begin_with(0, 0);
  CHECK_EQ(iofs_access_rw(access_, 0x10000, buf, 0, 0), -EINVAL);
  CHECK_EQ(iofs_access_rw(access_, TOP, buf, 2, 0), -EOVERFLOW);
  CHECK_EQ(iofs_access_rw(access_, 0x10000, buf, 1, 0), -ENOENT);
  map_at(memory + 1, 100, RW, 0x10000);
  map_at(memory + 4000, 200, RW, 0x10064);
  map_at(memory + 2 * K4, K4, IOFS_READ, 0x20000);
  strcpy(memory + 91, "0123456789");
  strcpy(memory + 4000, "abcdefg");
  CHECK_EQ(iofs_access_rw(access_, 0x10000 + 90, buf, 17, 0), 0);
  CHECK(!memcmp(buf, "0123456789abcdefg", 17));
  CHECK_EQ(stats.pinned_pages, 0);
  CHECK_EQ(iofs_access_rw(access_, 0x10064, "xyz", 3, 1), 0);
  CHECK(!memcmp(memory + 4000, "xyzdefg", 7));
  CHECK_EQ(iofs_access_rw(access_, 0x20000, buf, 1, 1), -EPERM);
  CHECK_EQ(iofs_access_rw(access_, 0x20000, buf, 1, 0), 0);
  /* What comes before the gap has been moved. */
  CHECK_EQ(iofs_access_rw(access_, 0x10064, memset(buf, 'q', 300), 300, 1), -ENOENT);
  CHECK_EQ(memory[4199], 'q');
  munmap(memory + K4, K4);
  CHECK_EQ(iofs_access_rw(access_, 0x10064, buf, 200, 0), -EFAULT);
  end();
}

static void test_rw_of_what_is_partly_pinned(void) {
  char buf[6 * 4096];
  begin();
  for (int i = 0; i < 16; i++)
    memset(memory + i * K4, 'a' + i, K4);
  map_at(memory, 16 * K4, RW, 0x10000);
  CHECK_EQ(iofs_access_pin(access_, 0x12000, K4, RW), 0);
  CHECK_EQ(iofs_access_pin(access_, 0x14000, K4, RW), 0);
  CHECK_EQ(iofs_access_rw(access_, 0x11000, buf, 5 * K4 + 100, 0), 0);
  for (int i = 0; i < 6; i++)
    CHECK(buf[i * K4] == 'b' + i && buf[i * K4 + 99] == 'b' + i);
  CHECK_EQ(iofs_access_unpin(access_, 0x12000, K4), 0);
  CHECK_EQ(iofs_access_unpin(access_, 0x14000, K4), 0);
  end();
}

static void test_a_job_keeps_its_access(void) {
  begin_with(0, 0);
  map_at(memory, K4, RW, 0x10000);
  strcpy(memory, "hello");
  struct iofs_access *access;
  CHECK_EQ(iofs_access_new(0, 0, &access), 0);
  CHECK_EQ(iofs_access_attach(access, iopt), 0);
  struct iofs_job *job = iofs_job_access_rw(access, 0x10000, NULL, 6);
  while (!iofs_job_wait(job, 1000000)) /* not in time: it comes out of the list, or next time */
    while (iofs_job_next_done())
      continue;
  CHECK_EQ(iofs_job_result(job), 0);
  CHECK(!strcmp(iofs_job_data(job), "hello"));
  CHECK_EQ(iofs_access_detach(access), 0);
  iofs_access_put(access);
  CHECK_EQ(stats.accesses, 2);
  iofs_job_free(job);
  CHECK_EQ(stats.accesses, 1);
  end();
}

static void test_no_memory_leaves_no_trace(void) {
  for (int n = 1, fails = 1; fails; n++) {
    char buf[8192];
    begin();
    map_at(memory, 2 * K4, RW, 0x10000);
    map_at(memory + 2 * K4, 2 * K4, RW, 0x12000);
    iofs_fail_allocation((uint64_t)n);
    int err = iofs_access_pin(access_, 0x11000, 2 * K4, RW);
    int rw_err = err ? 0 : iofs_access_rw(access_, 0x10800, buf, 8192, 0);
    fails = !iofs_fail_allocation(0);
    CHECK_EQ(err ? err : rw_err, fails ? -ENOMEM : 0);
    CHECK_EQ(stats.pinned_pages, err ? 0 : 2);
    if (!err)
      CHECK_EQ(iofs_access_unpin(access_, 0x11000, 2 * K4), 0);
    end();
    CHECK(n < 30);
  }
}

int main(void) {
  RUN(test_attach_raises_the_alignment);
  RUN(test_pin_checks);
  RUN(test_pins_count);
  RUN(test_unmap_waits_for_pins);
  RUN(test_an_access_that_never_lets_go);
  RUN(test_an_internal_access_forbids_to_unmap);
  RUN(test_rw);
  RUN(test_rw_of_what_is_partly_pinned);
  RUN(test_a_job_keeps_its_access);
  RUN(test_no_memory_leaves_no_trace);
  return 0;
}
