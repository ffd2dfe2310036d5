/* Copies that outlive the file they copy from. */
#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "test.h"

static sigjmp_buf others;

static void others_handler(int signal) { siglongjmp(others, signal); }

static void test_a_truncated_file_is_efault(void) {
  char buf[8192] = "";
  int fd = memfd_create("test", 0);
  CHECK_EQ(ftruncate(fd, 8192), 0);
  char *memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  guard_install();
  strcpy(memory + 4090, "hello");
  CHECK_EQ(guard_copy(buf, memory, 8192), 0);
  CHECK(!strcmp(buf + 4090, "hello"));
  CHECK_EQ(ftruncate(fd, 4096), 0);
  CHECK_EQ(guard_copy(buf, memory, 8192), -EFAULT);
  CHECK_EQ(guard_copy(memory, buf, 8192), -EFAULT);
  CHECK_EQ(guard_copy(buf, memory, 4096), 0);
  munmap(memory, 8192);
  close(fd);
}

static void test_other_faults_go_to_whom_they_belong(void) {
  struct sigaction other = {.sa_handler = others_handler, .sa_flags = SA_NODEFER};
  int fd = memfd_create("test", 0);
  char *memory = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0), buf[1];
  CHECK_EQ(sigaction(SIGBUS, &other, NULL), 0); /* as faulthandler does in the middle of things */
  guard_install();
  CHECK_EQ(guard_copy(buf, memory, 1), -EFAULT);
  int signal = sigsetjmp(others, 1);
  if (!signal)
    CHECK_EQ(*(volatile char *)memory, 0);
  CHECK_EQ(signal, SIGBUS);
  munmap(memory, 4096);
  close(fd);
}

int main(void) {
  RUN(test_a_truncated_file_is_efault);
  RUN(test_other_faults_go_to_whom_they_belong);
  return 0;
}
