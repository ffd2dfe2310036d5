/* Signals arrive, and no counter makes anyone wait. */
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "iommufs.h"
#include "test.h"

static void test_signals_add_up(void) {
  int fd = eventfd(0, EFD_NONBLOCK);
  for (int i = 0; i < 1000; i++)
    CHECK_EQ(iofs_eventfd_signal(fd), 0);
  eventfd_t value;
  CHECK_EQ(eventfd_read(fd, &value), 0);
  CHECK_EQ(value, 1000);
  close(fd);
}

static void test_a_full_counter_of_a_blocking_eventfd_does_not_wait(void) {
  int fd = eventfd(0, 0);
  CHECK_EQ(eventfd_write(fd, UINT64_MAX - 1), 0);
  for (int i = 0; i < 3; i++)
    CHECK_EQ(iofs_eventfd_signal(fd), 0);
  eventfd_t value;
  CHECK_EQ(eventfd_read(fd, &value), 0);
  CHECK(value >= UINT64_MAX - 1);
  close(fd);
}

int main(void) {
  RUN(test_signals_add_up);
  RUN(test_a_full_counter_of_a_blocking_eventfd_does_not_wait);
  return 0;
}
