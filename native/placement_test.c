/* A reader beside its client. */
#define _GNU_SOURCE
#include "placement.h"

#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

static cpu_set_t where_we_may_run(void) {
  cpu_set_t set;
  CHECK_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  return set;
}

static int last_of(const cpu_set_t *set) {
  int core = CPU_SETSIZE - 1;
  while (!CPU_ISSET(core, set))
    core--;
  return core;
}

static cpu_set_t only(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  return set;
}

/* A process that runs on one core, and sleeps. */
static pid_t start_client(int core) {
  int ready[2];
  char byte = 0;
  CHECK_EQ(pipe(ready), 0);
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (!pid) {
    cpu_set_t set = only(core);
    if (!sched_setaffinity(0, sizeof set, &set) && write(ready[1], &byte, 1) == 1)
      pause();
    _exit(1);
  }
  CHECK_EQ(read(ready[0], &byte, 1), 1);
  close(ready[0]);
  close(ready[1]);
  return pid;
}

static void end_client(pid_t pid) {
  kill(pid, SIGKILL);
  CHECK_EQ(waitpid(pid, NULL, 0), pid);
}

static void note_often(int tid) {
  for (int i = 0; i < 100; i++)
    placement_note(tid);
}

static void test_beside_the_only_client(void) {
  cpu_set_t before = where_we_may_run(), now;
  int core = last_of(&before);
  pid_t client = start_client(core);
  placement_note(client);
  now = where_we_may_run();
  CHECK(CPU_EQUAL(&now, &before)); /* one request says nothing yet */
  note_often(client);
  if (CPU_COUNT(&before) > 1) {
    cpu_set_t place = only(core);
    now = where_we_may_run();
    CHECK(CPU_EQUAL(&now, &place));
    CHECK(placement_is_beside());
  }
  placement_note(getpid());
  now = where_we_may_run();
  CHECK(CPU_EQUAL(&now, &before)); /* another client asks */
  CHECK(!placement_is_beside());
  end_client(client);
}

static void test_not_for_longer_than_it_is_asked(void) {
  cpu_set_t before = where_we_may_run(), now;
  pid_t client = start_client(last_of(&before));
  note_often(client);
  placement_leave();
  now = where_we_may_run();
  CHECK(CPU_EQUAL(&now, &before));
  placement_note(client);
  now = where_we_may_run();
  CHECK(CPU_EQUAL(&now, &before));
  end_client(client);
}

static void test_a_client_that_cannot_be_seen_has_no_core(void) {
  cpu_set_t before = where_we_may_run(), now;
  pid_t gone = start_client(last_of(&before));
  end_client(gone);
  note_often(gone);
  note_often(0);
  now = where_we_may_run();
  CHECK(CPU_EQUAL(&now, &before));
}

int main(void) {
  RUN(test_beside_the_only_client);
  RUN(test_not_for_longer_than_it_is_asked);
  RUN(test_a_client_that_cannot_be_seen_has_no_core);
  return 0;
}
