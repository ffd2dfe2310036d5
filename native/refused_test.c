/* The ledgers of refused DMAs: nothing is lost in the count, whoever reports. */
#include <poll.h>
#include <pthread.h>

#include "iommufs.h"
#include "test.h"

#define N_THREADS 4
#define N_EACH 20000

static void report(struct iofs_refused *refused, uint64_t iova, uint32_t write, uint32_t reason) {
  struct iofs_dma_fault fault = {iova, write, reason};
  iofs_refused_report(refused, &fault, 64);
}

static int readable(void) {
  struct pollfd poll_fd = {.fd = iofs_refused_fd(), .events = POLLIN};
  return poll(&poll_fd, 1, 0);
}

static struct iofs_refused *make(uint64_t cookie) {
  struct iofs_refused *refused;
  CHECK_EQ(iofs_refused_new(cookie, &refused), 0);
  return refused;
}

static void test_first_of_each_way_is_kept_and_all_are_counted(void) {
  struct iofs_refusals got;
  struct iofs_refused *refused = make(7);
  CHECK_EQ(iofs_refused_next(&got), 0);
  CHECK_EQ(readable(), 0);
  for (uint64_t i = 0; i < 5; i++)
    report(refused, 0x1000 + i, 1, IOFS_DMA_UNMAPPED);
  report(refused, 0x9000, 0, IOFS_DMA_UNMAPPED);
  CHECK_EQ(readable(), 1);
  CHECK_EQ(iofs_refused_next(&got), 1);
  CHECK(got.cookie == 7 && got.n == 1 && got.iova == 0x9000 && !got.write);
  CHECK_EQ(iofs_refused_next(&got), 1);
  CHECK(got.n == 5 && got.iova == 0x1000 && got.length == 64 && got.write == 1);
  CHECK_EQ(got.reason, IOFS_DMA_UNMAPPED);
  CHECK_EQ(readable(), 0);
  report(refused, 0x5000, 1, IOFS_DMA_UNMAPPED);
  CHECK_EQ(iofs_refused_next(&got), 1);
  CHECK(got.n == 1 && got.iova == 0x5000);
  iofs_refused_free(refused);
}

static void test_a_ledger_that_goes_takes_its_refusals_with_it(void) {
  struct iofs_refusals got;
  struct iofs_refused *first = make(1), *second = make(2);
  report(first, 0, 0, IOFS_DMA_DETACHED);
  report(second, 0, 0, IOFS_DMA_NO_MASTER);
  iofs_refused_free(first);
  CHECK_EQ(readable(), 1);
  CHECK_EQ(iofs_refused_next(&got), 1);
  CHECK_EQ(got.cookie, 2);
  report(second, 0, 0, IOFS_DMA_GONE);
  iofs_refused_free(second);
  CHECK_EQ(readable(), 0);
  CHECK_EQ(iofs_refused_next(&got), 0);
  iofs_refused_free(NULL);
}

static void *reporter(void *refused) {
  for (uint64_t i = 0; i < N_EACH; i++)
    report(refused, i, i & 1, 1 + i % (IOFS_N_DMA_REASONS - 1));
  return NULL;
}

static void test_reports_of_many_threads_are_all_counted(void) {
  struct iofs_refusals got;
  struct iofs_refused *refused[2] = {make(0), make(1)};
  pthread_t threads[N_THREADS];
  uint64_t n[2] = {0, 0};
  for (int i = 0; i < N_THREADS; i++)
    CHECK_EQ(pthread_create(&threads[i], NULL, reporter, refused[i % 2]), 0);
  for (int i = 0; i < 1000; i++)
    if (iofs_refused_next(&got))
      n[got.cookie] += got.n;
  for (int i = 0; i < N_THREADS; i++)
    pthread_join(threads[i], NULL);
  while (iofs_refused_next(&got))
    n[got.cookie] += got.n;
  CHECK_EQ(n[0], N_THREADS / 2 * N_EACH);
  CHECK_EQ(n[1], N_THREADS / 2 * N_EACH);
  CHECK_EQ(readable(), 0);
  iofs_refused_free(refused[0]);
  iofs_refused_free(refused[1]);
}

int main(void) {
  RUN(test_first_of_each_way_is_kept_and_all_are_counted);
  RUN(test_a_ledger_that_goes_takes_its_refusals_with_it);
  RUN(test_reports_of_many_threads_are_all_counted);
}
