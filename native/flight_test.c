/* Threads in the middle of DMA: who is waited for, and who is not. */
#include "flight.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "test.h"

static struct flights flights;
static _Atomic int n_begun, n_ended, go_on;

/* Takes a while, but ends when nobody waits for its place on a core any more. */
static void *fly(void *unused) {
  int place = flight_begin(&flights);
  n_begun++;
  while (!go_on)
    sched_yield();
  for (int i = 0; i < 20; i++)
    sched_yield();
  n_ended++;
  flight_end(&flights, place);
  return unused;
}

static void all_that_began_have_ended(void) {
  pthread_t threads[FLIGHTS_KNOWN + 4];
  const int n = FLIGHTS_KNOWN + 4; /* more than are known by their thread */
  n_begun = n_ended = go_on = 0;
  for (int i = 0; i < n; i++)
    CHECK_EQ(pthread_create(&threads[i], NULL, fly, NULL), 0);
  while (n_begun < n)
    sched_yield();
  CHECK_EQ(flights.n, n);
  go_on = 1;
  flights_wait(&flights);
  CHECK_EQ(n_ended, n);
  for (int i = 0; i < n; i++)
    pthread_join(threads[i], NULL);
  CHECK(!flights.n && !flights.n_given_up);
}

static void *touch(void *page) {
  int place = flight_begin(&flights);
  int value = *(volatile char *)page;
  flight_end(&flights, place);
  return page + value;
}

static void a_page_that_a_client_serves_is_not_waited_for(void) {
  struct uffdio_api api = {.api = UFFD_API};
  char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  pthread_t threads[2];
  if (fd < 0) {
    CHECK_EQ(errno, EPERM);
    return;
  }
  CHECK_EQ(ioctl(fd, UFFDIO_API, &api), 0);
  struct uffdio_register served = {{(uintptr_t)page, 4096}, UFFDIO_REGISTER_MODE_MISSING, 0};
  CHECK_EQ(ioctl(fd, UFFDIO_REGISTER, &served), 0);
  for (int i = 0; i < 2; i++) {
    struct pollfd asked = {.fd = fd, .events = POLLIN};
    struct uffd_msg message;
    CHECK_EQ(pthread_create(&threads[i], NULL, touch, page), 0);
    CHECK_EQ(poll(&asked, 1, 20000), 1);
    CHECK_EQ(read(fd, &message, sizeof message), (ssize_t)sizeof message);
    flights_wait(&flights);
    CHECK(flights.n == i + 1 && flights.n_given_up == i + 1);
  }
  struct uffdio_zeropage zero = {.range = {(uintptr_t)page, 4096}};
  CHECK_EQ(ioctl(fd, UFFDIO_ZEROPAGE, &zero), 0);
  for (int i = 0; i < 2; i++)
    pthread_join(threads[i], NULL);
  CHECK(!flights.n && !flights.n_given_up);
  close(fd);
  munmap(page, 4096);
}

int main(void) {
  RUN(all_that_began_have_ended);
  RUN(a_page_that_a_client_serves_is_not_waited_for);
  return 0;
}
