/*
 * While calls come one close after the other, idle cores of a small virtual machine stay awake.
 *
 * A client and a reader take turns, so one of their cores is idle at any time. If the two are not
 * the same (placement.c), each wakes the other's, and to wake one that sleeps takes an exit to the
 * hypervisor: more than the call. /dev/cpu_dma_latency is the kernel's interface for saying so.
 * It is root's, and often not there in a container; then cores sleep as they did.
 *
 * Only where cores are few and halt as soon as they are idle, as is so with the driver "haltpoll".
 * Others first wait in a way that ends within a microsecond or two.
 */
#define _GNU_SOURCE
#include "pm_qos.h"

#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define IN_A_ROW 8          /* requests */
#define CLOSE_NS 1000000ull /* for so many of them together: then they come close */
#define MAX_CORES 4         /* more would be kept awake for the sake of two */

static int held = -1; /* the file, open while the request for latency stands */
static int useless;   /* it cannot be made, or would change nothing */
static unsigned n;
static uint64_t since; /* n was 0 */

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int few_cores_that_halt(void) {
  static const char haltpoll[] = "haltpoll\n";
  char driver[sizeof haltpoll];
  if (sysconf(_SC_NPROCESSORS_ONLN) > MAX_CORES)
    return 0;
  int fd = open("/sys/devices/system/cpu/cpuidle/current_driver", O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return 0;
  ssize_t length = read(fd, driver, sizeof driver);
  close(fd);
  return length == sizeof haltpoll - 1 && !memcmp(driver, haltpoll, sizeof haltpoll - 1);
}

static void hold(void) {
  const int32_t microseconds = 0;
  int fd = few_cores_that_halt() ? open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC) : -1;
  if (fd >= 0 && write(fd, &microseconds, sizeof microseconds) == sizeof microseconds) {
    held = fd;
    return;
  }
  if (fd >= 0)
    close(fd);
  useless = 1;
}

void pm_qos_note(void) {
  if (useless || ++n < IN_A_ROW)
    return;
  uint64_t now = now_ns();
  int close_together = now - since < CLOSE_NS;
  since = now;
  n = 0;
  if (!close_together)
    pm_qos_release();
  else if (held < 0)
    hold();
}

void pm_qos_release(void) {
  if (held >= 0)
    close(held);
  held = -1;
  n = 0;
}

int pm_qos_is_held(void) { return held >= 0; }
