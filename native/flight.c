/* Threads in the middle of DMA (see flight.h). */
#define _GNU_SOURCE
#include "flight.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NAP_NS 50000l
#define NAPS_BETWEEN_LOOKS 20
#define MAX_NAPS 2000

static _Thread_local pid_t this_thread;

int flight_begin(struct flights *flights) {
  if (!this_thread)
    this_thread = (pid_t)syscall(SYS_gettid);
  flights->n++;
  for (int i = 0; i < FLIGHTS_KNOWN; i++) {
    pid_t nobody = 0;
    if (atomic_compare_exchange_strong(&flights->threads[i], &nobody, this_thread))
      return i;
  }
  return -1;
}

void flight_end(struct flights *flights, int place) {
  if (place >= 0 && atomic_exchange(&flights->threads[place], 0) < 0)
    flights->n_given_up--;
  flights->n--;
}

int is_kept_waiting(pid_t thread) {
  char path[64], where[64] = "";
  snprintf(path, sizeof path, "/proc/self/task/%d/wchan", (int)thread);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : read(fd, where, sizeof where - 1);
  if (fd >= 0)
    close(fd);
  return n > 0 && !strcmp(where, "handle_userfault");
}

static void give_up(struct flights *flights, int i) {
  pid_t thread = flights->threads[i];
  if (thread > 0 && atomic_compare_exchange_strong(&flights->threads[i], &thread, -thread))
    flights->n_given_up++;
}

void flights_wait(struct flights *flights) {
  const struct timespec nap = {0, NAP_NS};
  for (int n = 1; flights->n > flights->n_given_up && n <= MAX_NAPS; n++) {
    nanosleep(&nap, NULL);
    for (int i = 0; i < FLIGHTS_KNOWN && n % NAPS_BETWEEN_LOOKS == 0; i++) {
      pid_t thread = flights->threads[i];
      if (thread > 0 && (n == MAX_NAPS || is_kept_waiting(thread)))
        give_up(flights, i);
    }
  }
}
