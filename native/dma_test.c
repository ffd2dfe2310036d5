/* DMA through a page table: what is refused and why, and what happens when the memory goes. */
#define _GNU_SOURCE
#include "iommufs.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "stats.h"
#include "test.h"

#define K4 4096ull
#define RW (IOFS_READ | IOFS_WRITE)
#define PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)
#define SHARED (MAP_SHARED | MAP_ANONYMOUS)

static struct iofs_mm *mm;
static struct iofs_iopt *iopt;
static struct iofs_domain *domain;
static struct iofs_dma_fault fault;
static const struct iofs_charge no_charge = {IOFS_CHARGE_NONE, 0, 0};

static void begin_with(pid_t pid, uint32_t format) {
  struct iofs_domain_config config = {0, (1ull << 48) - 1, K4 | 2 << 20 | 1 << 30, format};
  CHECK_EQ(iofs_mm_open_process(pid, &mm), 0);
  iopt = iofs_iopt_new();
  CHECK_EQ(iofs_domain_new(&config, &domain), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
}

static void begin(void) { begin_with(getpid(), IOFS_PT_VTD); }

static void end(void) {
  iofs_iopt_remove_domain(iopt, domain);
  iofs_domain_put(domain);
  iofs_iopt_free(iopt);
  iofs_mm_put(mm);
  CHECK_EQ(stats.iopts + stats.pages + stats.pinned_pages + stats.domains + stats.table_bytes, 0);
  CHECK_EQ(stats.source_maps + stats.mms, 0);
}

static char *memory_of(size_t length, int flags) {
  char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, -1, 0);
  CHECK(memory != MAP_FAILED);
  return memory;
}

static void map_at(const void *at, uint64_t length, uint32_t prot, uint64_t iova) {
  CHECK_EQ(iofs_iopt_map_user(iopt, mm, &no_charge, (uintptr_t)at, length, prot, 1, &iova), 0);
}

static uint64_t unmap_at(uint64_t iova, uint64_t length) {
  struct iofs_range range;
  uint64_t unmapped = 0;
  CHECK_EQ(iofs_iopt_unmap(iopt, iova, length, &unmapped, &range), 0);
  return unmapped;
}

static void check_fault(int result, uint64_t iova, uint32_t write, uint32_t reason) {
  CHECK_EQ(result, -EFAULT);
  CHECK_EQ(fault.iova, iova);
  CHECK_EQ(fault.write, write);
  CHECK_EQ(fault.reason, reason);
}

static void test_a_span_over_many_areas(void) {
  char buf[5 * 4096], *one = memory_of(8 * K4, PRIVATE), *two = memory_of(8 * K4, SHARED);
  begin();
  map_at(one, 2 * K4, RW, 0x100000);
  map_at(two + K4, 2 * K4, RW, 0x102000);
  map_at(one + 4 * K4, K4, RW, 0x104000);
  for (size_t i = 0; i < sizeof buf; i++)
    buf[i] = (char)(i / 7);
  CHECK_EQ(iofs_dma_write(domain, 0x100010, buf, 5 * K4 - 0x20, &fault), 0);
  CHECK_EQ(fault.reason, IOFS_DMA_OK);
  CHECK(!memcmp(one + 0x10, buf, 2 * K4 - 0x10));
  CHECK(!memcmp(two + K4, buf + 2 * K4 - 0x10, 2 * K4));
  CHECK(!memcmp(one + 4 * K4, buf + 4 * K4 - 0x10, K4 - 0x10));
  char back[sizeof buf] = "";
  CHECK_EQ(iofs_dma_read(domain, 0x100010, back, 5 * K4 - 0x20, &fault), 0);
  CHECK(!memcmp(back, buf, 5 * K4 - 0x20));
  CHECK_EQ(iofs_dma_read(domain, 0, back, 0, &fault), 0);
  end();
  munmap(one, 8 * K4);
  munmap(two, 8 * K4);
}

/* More runs than fit into a list without memory of its own; and that memory missing. */
static void test_a_span_of_many_runs(void) {
  char buf[16], *one = memory_of(16 * K4, PRIVATE), *two = memory_of(16 * K4, SHARED);
  uint64_t left;
  begin();
  for (uint64_t i = 0; i < 16; i++) {
    map_at((i % 2 ? one : two) + (15 - i) * K4, K4, RW, 0x100000 + i * K4);
    memset((i % 2 ? one : two) + (15 - i) * K4, 'a' + (int)i, K4);
  }
  for (uint64_t n = 1; n < 3; n++) {
    static char big[16 * 4096];
    iofs_fail_allocation(n);
    CHECK_EQ(iofs_dma_read(domain, 0x100000, big, sizeof big, &fault), -ENOMEM);
    left = iofs_fail_allocation(0);
    CHECK_EQ(left, 0);
    CHECK(!big[0]); /* nothing moved */
    if (n < 2)
      continue;
    CHECK_EQ(iofs_dma_read(domain, 0x100000, big, sizeof big, &fault), 0);
    for (int i = 0; i < 16; i++)
      CHECK(big[i * K4] == 'a' + i && big[i * K4 + K4 - 1] == 'a' + i);
  }
  memset(buf, 'z', sizeof buf);
  CHECK_EQ(iofs_dma_write(domain, 0x100000 + K4 - 8, buf, 16, &fault), 0);
  CHECK(two[16 * K4 - 1] == 'z' && one[14 * K4] == 'z' && one[14 * K4 + 8] == 'b');
  end();
  munmap(one, 16 * K4);
  munmap(two, 16 * K4);
}

static void test_refusals_say_where_and_why_and_move_nothing(void) {
  char buf[3 * 4096], *memory = memory_of(3 * K4, PRIVATE);
  begin();
  map_at(memory, K4, RW, 0x100000);
  map_at(memory + K4, K4, IOFS_READ, 0x101000);
  map_at(memory + 2 * K4, K4, IOFS_WRITE, 0x103000);
  memset(buf, 'x', sizeof buf);
  check_fault(iofs_dma_write(domain, 0x100800, buf, 0x1000, &fault), 0x101000, 1,
              IOFS_DMA_PERMISSION);
  CHECK(!memory[0x800] && !memory[0xfff]);
  check_fault(iofs_dma_read(domain, 0x101800, buf, 0x1000, &fault), 0x102000, 0, IOFS_DMA_UNMAPPED);
  CHECK_EQ(buf[0], 'x');
  check_fault(iofs_dma_read(domain, 0x103008, buf, 1, &fault), 0x103008, 0, IOFS_DMA_PERMISSION);
  CHECK_EQ(iofs_dma_write(domain, 0x103008, buf, 1, &fault), 0);
  check_fault(iofs_dma_write(domain, 0x104000, buf, 1, &fault), 0x104000, 1, IOFS_DMA_UNMAPPED);
  check_fault(iofs_dma_read(domain, 1ull << 48, buf, 1, &fault), 1ull << 48, 0, IOFS_DMA_UNMAPPED);
  check_fault(iofs_dma_read(domain, -1ull, buf, 2, &fault), -1ull, 0, IOFS_DMA_UNMAPPED);
  unmap_at(0x100000, K4);
  check_fault(iofs_dma_read(domain, 0x100000, buf, 1, &fault), 0x100000, 0, IOFS_DMA_UNMAPPED);
  end();
  munmap(memory, 3 * K4);
}

static size_t n_dirty_ranges(struct iofs_range *out) {
  uint64_t at = 0x100000;
  return iofs_domain_read_dirty(domain, &at, 0x10ffff, 1, out, 4);
}

/* All rules hold for what the IOTLB knows already. */
static void test_the_second_time_is_as_the_first(void) {
  char buf[4096], *memory = memory_of(4 * K4, SHARED);
  struct iofs_range dirty[4];
  int file = memfd_create("short", 0);
  CHECK(file >= 0 && !ftruncate(file, K4));
  char *short_file = mmap(NULL, K4, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  begin_with(getpid(), IOFS_PT_MOCK); /* which tracks dirty pages */
  map_at(memory, 2 * K4, RW, 0x100000);
  map_at(memory + 2 * K4, K4, IOFS_READ, 0x102000);
  map_at(short_file, K4, RW, 0x103000);
  iofs_domain_set_dirty_tracking(domain, 1);
  for (int time = 0; time < 3; time++) {
    memset(buf, 'a' + time, sizeof buf);
    CHECK_EQ(iofs_dma_write(domain, 0x100ffc, buf, 8, &fault), 0);
    CHECK(memory[K4 - 4] == 'a' + time && memory[K4 + 3] == 'a' + time && !memory[K4 + 4]);
    CHECK_EQ(n_dirty_ranges(dirty), 1);
    CHECK(dirty->start == 0x100000 && dirty->last == 0x101fff);
    CHECK_EQ(iofs_dma_read(domain, 0x100ffc, buf + 8, 8, &fault), 0);
    CHECK(!memcmp(buf, buf + 8, 8));
    CHECK_EQ(n_dirty_ranges(dirty), 0);
    CHECK_EQ(iofs_dma_read(domain, 0x100ffc, NULL, 0, &fault), 0);
    CHECK_EQ(iofs_dma_read(domain, 0x102000, buf, 8, &fault), 0);
    check_fault(iofs_dma_write(domain, 0x102000, buf, 8, &fault), 0x102000, 1,
                IOFS_DMA_PERMISSION);
    check_fault(iofs_dma_read(domain, 0x103ff8, buf, 16, &fault), 0x104000, 0, IOFS_DMA_UNMAPPED);
    CHECK_EQ(iofs_dma_write(domain, 0x103010, buf, 8, &fault), 0);
    CHECK_EQ(n_dirty_ranges(dirty), 1);
    CHECK(dirty->start == 0x103000 && dirty->last == 0x103fff);
  }
  CHECK(!ftruncate(file, 0));
  check_fault(iofs_dma_write(domain, 0x103010, buf, 8, &fault), 0x103010, 1, IOFS_DMA_GONE);
  check_fault(iofs_dma_read(domain, 0x103010, buf, 8, &fault), 0x103010, 0, IOFS_DMA_GONE);
  end();
  munmap(memory, 4 * K4);
  munmap(short_file, K4);
  close(file);
}

static void test_memory_that_went_is_gone(void) {
  int fd = memfd_create("test", 0);
  CHECK_EQ(ftruncate(fd, 2 * K4), 0);
  char buf[8192], *private = memory_of(K4, PRIVATE);
  char *shared = mmap(NULL, 2 * K4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  begin();
  map_at(shared, 2 * K4, RW, 0x100000);
  map_at(private, K4, RW, 0x102000);
  munmap(private, K4);
  munmap(shared, 2 * K4);
  strcpy(buf, "still here");
  CHECK_EQ(iofs_dma_write(domain, 0x101000, buf, 11, &fault), 0);
  CHECK(pread(fd, buf + 20, 11, 4096) == 11 && !strcmp(buf, buf + 20));
  check_fault(iofs_dma_read(domain, 0x101ff0, buf, 32, &fault), 0x102000, 0, IOFS_DMA_GONE);
  CHECK_EQ(ftruncate(fd, K4), 0); /* under the feet of the server */
  check_fault(iofs_dma_write(domain, 0x101000, buf, 4, &fault), 0x101000, 1, IOFS_DMA_GONE);
  CHECK_EQ(iofs_dma_write(domain, 0x100000, buf, 4, &fault), 0);
  end();
  close(fd);
}

/* As the server does it: in a thread of the pool. */
static void test_a_job_survives_a_file_that_is_cut_short(void) {
  int fd = memfd_create("test", 0);
  uint64_t iova = 0;
  CHECK_EQ(ftruncate(fd, K4), 0);
  begin();
  CHECK_EQ(iofs_iopt_map_file(iopt, mm, &no_charge, fd, 0, K4, RW, 0, &iova), 0);
  CHECK_EQ(ftruncate(fd, 0), 0);
  struct iofs_job *job = iofs_job_dma(domain, iova, NULL, 8);
  while (!iofs_job_wait(job, 1000000))
    while (iofs_job_next_done())
      continue;
  CHECK_EQ(iofs_job_result(job), -EFAULT);
  CHECK_EQ(iofs_job_fault(job)->reason, IOFS_DMA_GONE);
  iofs_job_free(job);
  close(fd);
  end();
}

static struct iofs_job *spans(const uint64_t *spans, size_t n, const void *data, size_t length) {
  struct iofs_job *job = iofs_job_dma_spans(domain, spans, n, data, length);
  while (!iofs_job_wait(job, 1000000))
    while (iofs_job_next_done())
      continue;
  return job;
}

static void test_one_refused_span_does_not_keep_the_others(void) {
  char *memory = memory_of(4 * K4, PRIVATE);
  begin();
  map_at(memory, 2 * K4, RW, 0x100000);
  map_at(memory + 2 * K4, K4, IOFS_READ, 0x102000);
  const uint64_t writes[] = {0x100ffe, 4, 0x200000, 3, 0x102000, 1, 0x101800, 2};
  struct iofs_job *job = spans(writes, 4, "fourbadxok", 10);
  CHECK_EQ(iofs_job_result(job), 2);
  CHECK_EQ(iofs_job_faults(job)[0].reason, IOFS_DMA_OK);
  fault = iofs_job_faults(job)[1];
  CHECK(fault.iova == 0x200000 && fault.write && fault.reason == IOFS_DMA_UNMAPPED);
  CHECK_EQ(iofs_job_faults(job)[2].reason, IOFS_DMA_PERMISSION);
  CHECK_EQ(iofs_job_faults(job)[3].reason, IOFS_DMA_OK);
  iofs_job_free(job);
  CHECK(!memcmp(memory + K4 - 2, "four", 4) && !memcmp(memory + K4 + 0x800, "ok", 2));
  const uint64_t reads[] = {0x101800, 2, 0x300000, 1, 0x100ffe, 4};
  job = spans(reads, 3, NULL, 7);
  CHECK_EQ(iofs_job_result(job), 1);
  CHECK_EQ(iofs_job_faults(job)[1].iova, 0x300000);
  CHECK(!memcmp(iofs_job_data(job), "ok", 2));
  CHECK(!memcmp((const char *)iofs_job_data(job) + 3, "four", 4));
  iofs_job_free(job);
  end();
  munmap(memory, 4 * K4);
}

static void test_a_file_map_needs_no_mapping_of_the_client(void) {
  int fd = memfd_create("test", 0);
  char buf[8] = "";
  uint64_t iova = 0;
  CHECK_EQ(ftruncate(fd, 3 * K4), 0);
  begin();
  CHECK_EQ(iofs_iopt_map_file(iopt, mm, &no_charge, fd, K4, 2 * K4, RW, 0, &iova), 0);
  CHECK_EQ(iofs_iopt_map_file(iopt, mm, &no_charge, fd, K4, 3 * K4, RW, 0, &iova), -EINVAL);
  CHECK_EQ(pwrite(fd, "hello", 6, K4 + 100), 6);
  close(fd);
  CHECK_EQ(iofs_dma_read(domain, iova + 100, buf, 6, &fault), 0);
  CHECK(!strcmp(buf, "hello"));
  end();
}

static void test_a_client_that_ends_leaves_its_shared_memory(void) {
  char buf[8] = "", *shared = memory_of(K4, SHARED), *private = memory_of(K4, PRIVATE);
  int wait[2];
  CHECK_EQ(pipe(wait), 0);
  pid_t pid = fork();
  if (!pid) {
    close(wait[1]);
    _exit((int)read(wait[0], buf, 1));
  }
  begin_with(pid, IOFS_PT_VTD);
  map_at(shared, K4, RW, 0x100000);
  map_at(private, K4, RW, 0x101000);
  strcpy(shared, "hello");
  strcpy(private, "mine"); /* not the child's */
  CHECK_EQ(iofs_dma_read(domain, 0x101000, buf, 6, &fault), 0);
  CHECK(!buf[0]);
  kill(pid, SIGKILL);
  CHECK_EQ(waitpid(pid, NULL, 0), pid);
  CHECK_EQ(iofs_dma_read(domain, 0x100000, buf, 6, &fault), 0);
  CHECK(!strcmp(buf, "hello"));
  check_fault(iofs_dma_read(domain, 0x101000, buf, 6, &fault), 0x101000, 0, IOFS_DMA_GONE);
  /* Nothing of it can be pinned any more. */
  uint64_t iova = 0x200000;
  CHECK_EQ(iofs_iopt_map_user(iopt, mm, &no_charge, (uintptr_t)shared, K4, RW, 1, &iova), -EFAULT);
  end();
  close(wait[0]);
  close(wait[1]);
  munmap(shared, K4);
  munmap(private, K4);
}

static _Atomic int stop;
static _Atomic uint64_t n_moved, n_refused;

/* Every word of the memory is 7 and the device writes only 7, so no torn word shows either. */
static void *device(void *unused) {
  uint64_t buf[1024];
  struct iofs_dma_fault why;
  while (!stop)
    for (uint64_t iova = 0x100000; iova < 0x100000 + 16 * K4; iova += K4) {
      if (iofs_dma_read(domain, iova, buf, sizeof buf, &why)) {
        CHECK(why.reason == IOFS_DMA_UNMAPPED || why.reason == IOFS_DMA_GONE);
        n_refused++;
        continue;
      }
      n_moved++;
      for (int i = 0; i < 1024; i += 64)
        CHECK_EQ(buf[i], 7);
      iofs_dma_write(domain, iova, buf, sizeof buf, &why);
    }
  return unused;
}

static void test_maps_change_under_a_running_device(void) {
  uint64_t *memories[2] = {(uint64_t *)memory_of(18 * K4, PRIVATE),
                           (uint64_t *)memory_of(18 * K4, SHARED)};
  pthread_t threads[2];
  for (int i = 0; i < 2; i++)
    for (size_t k = 0; k < 18 * K4 / 8; k++)
      memories[i][k] = 7;
  begin();
  stop = 0;
  for (int i = 0; i < 2; i++)
    CHECK_EQ(pthread_create(&threads[i], NULL, device, NULL), 0);
  for (int round = 0; round < 500 || !n_moved || !n_refused; round++) {
    map_at(memories[round % 2], 8 * K4, RW, 0x100000);
    map_at(memories[!(round % 2)] + 512, 8 * K4, RW, 0x108000);
    if (round % 5 == 0) {
      iofs_iopt_remove_domain(iopt, domain);
      CHECK_EQ(iofs_iopt_add_domain(iopt, domain), 0);
    }
    CHECK_EQ(unmap_at(0x100000, 16 * K4), 16 * K4);
  }
  stop = 1;
  for (int i = 0; i < 2; i++)
    pthread_join(threads[i], NULL);
  end();
  munmap(memories[0], 18 * K4);
  munmap(memories[1], 18 * K4);
}

static void *writer(void *arg) {
  struct iofs_dma_fault why;
  static uint64_t counter[16 * K4 / 8];
  (void)arg;
  for (uint64_t n = 1; !stop; n++) {
    for (size_t i = 0; i < sizeof counter / 8; i += 64)
      counter[i] = n;
    if (!iofs_dma_write(domain, 0x100000, counter, sizeof counter, &why))
      n_moved++;
    else
      CHECK_EQ(why.reason, IOFS_DMA_UNMAPPED);
  }
  return NULL;
}

/* Once an unmap has returned, no byte changes any more. */
static void test_nothing_lands_after_an_unmap(int flags) {
  char *memory = memory_of(16 * K4, flags), *seen = memory_of(16 * K4, PRIVATE);
  pthread_t thread;
  memset(memory, 0, 16 * K4);
  begin();
  stop = 0;
  n_moved = 0;
  CHECK_EQ(pthread_create(&thread, NULL, writer, NULL), 0);
  for (int round = 0; round < 300; round++) {
    uint64_t before = n_moved;
    map_at(memory, 16 * K4, RW, 0x100000);
    while (n_moved == before)
      sched_yield();
    CHECK_EQ(unmap_at(0x100000, 16 * K4), 16 * K4);
    memcpy(seen, memory, 16 * K4);
    for (int i = 0; i < 20; i++) {
      sched_yield();
      CHECK(!memcmp(seen, memory, 16 * K4));
    }
  }
  stop = 1;
  pthread_join(thread, NULL);
  end();
  munmap(memory, 16 * K4);
  munmap(seen, 16 * K4);
}

static void test_nothing_lands_in_private_memory_after_an_unmap(void) {
  test_nothing_lands_after_an_unmap(PRIVATE);
}

static void test_nothing_lands_in_shared_memory_after_an_unmap(void) {
  test_nothing_lands_after_an_unmap(SHARED);
}

int main(void) {
  RUN(test_a_span_over_many_areas);
  RUN(test_a_span_of_many_runs);
  RUN(test_refusals_say_where_and_why_and_move_nothing);
  RUN_WITH_RIGHTS(test_the_second_time_is_as_the_first);
  RUN_WITH_RIGHTS(test_memory_that_went_is_gone);
  RUN(test_a_job_survives_a_file_that_is_cut_short);
  RUN(test_one_refused_span_does_not_keep_the_others);
  RUN(test_a_file_map_needs_no_mapping_of_the_client);
  RUN_WITH_RIGHTS(test_a_client_that_ends_leaves_its_shared_memory);
  RUN(test_maps_change_under_a_running_device);
  RUN(test_nothing_lands_in_private_memory_after_an_unmap);
  RUN(test_nothing_lands_in_shared_memory_after_an_unmap);
  return 0;
}
