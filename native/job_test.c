/* The job pool against real memory: of this process, and a page that does not come (userfaultfd). */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "iommufs.h"
#include "job.h"

#define PAGE 4096

static char *map(size_t length, int prot) {
  char *memory = mmap(NULL, length, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  assert(memory != MAP_FAILED);
  return memory;
}

static int64_t finish(struct iofs_job *job) {
  assert(job);
  while (!iofs_job_wait(job, 1000000))
    assert(!"the job does not end");
  return iofs_job_result(job);
}

static void test_read_stops_at_the_end_of_memory(void) {
  char *memory = map(2 * PAGE, PROT_READ | PROT_WRITE);
  memset(memory, 7, PAGE);
  mprotect(memory + PAGE, PAGE, PROT_NONE); /* a hole would be filled by the pool's threads */
  uint64_t address = (uintptr_t)memory;
  struct iofs_job *job = iofs_job_client_read(gettid(), address + PAGE - 8, 16);
  assert(finish(job) == 8 && !memcmp(iofs_job_data(job), "\7\7\7\7\7\7\7\7", 8));
  iofs_job_free(job);
  job = iofs_job_client_read(gettid(), address + PAGE, 16);
  assert(finish(job) == -EFAULT);
  iofs_job_free(job);
  munmap(memory, 2 * PAGE);
}

static void test_write_needs_a_writable_page(void) {
  char *memory = map(PAGE, PROT_READ | PROT_WRITE);
  struct iofs_job *job = iofs_job_client_write(gettid(), (uintptr_t)memory, "hello", 5);
  assert(finish(job) == 5 && !memcmp(memory, "hello", 5));
  iofs_job_free(job);
  mprotect(memory, PAGE, PROT_READ);
  job = iofs_job_client_write(gettid(), (uintptr_t)memory, "world", 5);
  assert(finish(job) == -EFAULT && !memcmp(memory, "hello", 5));
  iofs_job_free(job);
  munmap(memory, PAGE);
}

static void test_addresses_of_the_kernel_are_refused(void) {
  const uint64_t addresses[] = {0, 0xffff800000000000, 0xffffffffff600000, UINT64_MAX - 3};
  for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++) {
    struct iofs_job *job = iofs_job_client_read(gettid(), addresses[i], 16);
    assert(finish(job) == -EFAULT);
    iofs_job_free(job);
  }
}

/* A page whose first touch waits until resolve() fills it. */
static int make_stuck(char *page) {
  int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    return -1;
  struct uffdio_api api = {.api = UFFD_API};
  struct uffdio_register reg = {.range = {(uintptr_t)page, PAGE},
                                .mode = UFFDIO_REGISTER_MODE_MISSING};
  assert(!ioctl(fd, UFFDIO_API, &api) && !ioctl(fd, UFFDIO_REGISTER, &reg));
  return fd;
}

static void resolve(int fd, char *page) {
  struct uffdio_zeropage zero = {.range = {(uintptr_t)page, PAGE}};
  assert(!ioctl(fd, UFFDIO_ZEROPAGE, &zero));
}

static void test_a_stuck_job_does_not_hold_up_others(void) {
  char *page = map(PAGE, PROT_READ | PROT_WRITE);
  int fd = make_stuck(page);
  if (fd < 0) {
    printf("left out: userfaultfd is not permitted here (%s)\n", strerror(errno));
    return;
  }
  struct iofs_job *stuck[20];
  for (int i = 0; i < 20; i++) {
    stuck[i] = iofs_job_client_read(gettid(), (uintptr_t)page, 8);
    assert(!iofs_job_wait(stuck[i], 1000));
  }
  struct iofs_job *job = iofs_job_client_write(gettid(), (uintptr_t)&(int){0}, "x", 1);
  assert(finish(job) == 1);
  iofs_job_free(job);
  /* Half of them are given up while they run; the others are announced when they end. */
  for (int i = 0; i < 10; i++)
    iofs_job_free(stuck[i]);
  resolve(fd, page);
  for (int left = 10; left; left--) {
    struct pollfd ready = {iofs_job_done_fd(), POLLIN, 0};
    assert(poll(&ready, 1, 10000) == 1);
    struct iofs_job *ended = iofs_job_next_done();
    assert(ended && iofs_job_result(ended) == 8);
    iofs_job_free(ended);
  }
  assert(!iofs_job_next_done());
  close(fd);
  munmap(page, PAGE);
}

static void test_a_thread_runs_a_job_itself(void) {
  int number = 0;
  struct iofs_job *job = iofs_job_client_write(gettid(), (uintptr_t)&number, &(int){7}, sizeof number);
  job_claim(job);
  assert(job_run(job));
  assert(iofs_job_result(job) == sizeof number && number == 7);
  assert(iofs_job_wait(job, 0)); /* it is done, whoever asks */
  iofs_job_free(job);
  iofs_job_free(iofs_job_client_write(gettid(), 0, "x", 1)); /* nobody has begun it */
}

static void *run_it(void *job) { return (void *)(intptr_t)job_run(job); }

/* What a reader is stuck in while its caller is killed: another one takes it over, or gives it up. */
static void test_a_job_that_its_thread_is_stuck_in_is_taken_away_from_it(void) {
  char *page = map(PAGE, PROT_READ | PROT_WRITE);
  int fd = make_stuck(page);
  if (fd < 0) {
    printf("left out: userfaultfd is not permitted here (%s)\n", strerror(errno));
    return;
  }
  struct iofs_job *jobs[2];
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) {
    jobs[i] = iofs_job_client_read(gettid(), (uintptr_t)page, 8);
    job_claim(jobs[i]);
    assert(!pthread_create(&threads[i], NULL, run_it, jobs[i]));
    struct uffd_msg message;
    struct pollfd ready = {fd, POLLIN, 0};
    assert(poll(&ready, 1, 10000) == 1 && read(fd, &message, sizeof message) == sizeof message);
  }
  assert(!iofs_job_wait(jobs[0], 0));
  iofs_job_free(jobs[1]);
  resolve(fd, page);
  for (int i = 0; i < 2; i++) {
    void *wanted;
    assert(!pthread_join(threads[i], &wanted) && !wanted);
  }
  assert(iofs_job_next_done() == jobs[0] && iofs_job_result(jobs[0]) == 8);
  iofs_job_free(jobs[0]);
  close(fd);
  munmap(page, PAGE);
}

static void test_descriptors_of_a_client(void) {
  int fd = eventfd(0, 0);
  int copy = iofs_client_fd(gettid(), fd);
  assert(copy >= 0 && copy != fd);
  assert(!eventfd_write(copy, 3));
  eventfd_t value;
  assert(!eventfd_read(fd, &value) && value == 3);
  close(copy);
  close(fd);
  assert(iofs_client_fd(gettid(), 999999) == -EBADF);
  assert(iofs_client_fd(gettid(), -1) == -EBADF);
}

int main(void) {
  test_read_stops_at_the_end_of_memory();
  test_write_needs_a_writable_page();
  test_addresses_of_the_kernel_are_refused();
  test_a_stuck_job_does_not_hold_up_others();
  test_a_thread_runs_a_job_itself();
  test_a_job_that_its_thread_is_stuck_in_is_taken_away_from_it();
  test_descriptors_of_a_client();
  for (int i = 0; i < 1000 && iofs_live_jobs; i++)
    usleep(1000); /* threads that free what was given up */
  assert(!iofs_live_jobs);
  return 0;
}
