/* Locked-memory accounting against RLIMIT_MEMLOCK. */
#define _GNU_SOURCE
#include "charge.h"

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "iommufs.h"
#include "mm.h"
#include "stats.h"
#include "test.h"

static struct iofs_mm *mm;

static void set_limit(uint64_t pages) {
  struct rlimit limit;
  CHECK_EQ(getrlimit(RLIMIT_MEMLOCK, &limit), 0);
  limit.rlim_cur = pages * PAGE_SIZE;
  CHECK_EQ(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
}

static void test_a_user_pays_for_all_processes(void) {
  struct iofs_charge one = {IOFS_CHARGE_USER, 1000, getpid()};
  struct iofs_charge two = {IOFS_CHARGE_USER, 1064, getpid()};
  set_limit(10);
  CHECK_EQ(charge_add(&one, mm, 11), -ENOMEM);
  CHECK_EQ(charge_add(&one, mm, 6), 0);
  CHECK_EQ(charge_add(&one, mm, 5), -ENOMEM);
  CHECK_EQ(charge_add(&one, mm, UINT64_MAX), -ENOMEM);
  CHECK_EQ(charge_add(&two, mm, 10), 0);
  CHECK_EQ(charge_of_user(1000), 6);
  CHECK_EQ(stats.users, 2);
  charge_remove(&one, mm, 6);
  CHECK_EQ(stats.users, 1);
  CHECK_EQ(charge_add(&one, mm, 10), 0);
  set_limit(1); /* what is charged already stays */
  CHECK_EQ(charge_add(&one, mm, 0), 0);
  charge_remove(&one, mm, 10);
  charge_remove(&two, mm, 10);
  CHECK_EQ(stats.users, 0);
}

static void test_an_address_space_pays_for_itself(void) {
  struct iofs_charge charge = {IOFS_CHARGE_MM, 1000, getpid()};
  set_limit(10);
  CHECK_EQ(charge_add(&charge, mm, 10), 0);
  CHECK_EQ(charge_add(&charge, mm, 1), -ENOMEM);
  CHECK_EQ(charge_of_user(1000), 0);
  charge_remove(&charge, mm, 10);
  CHECK_EQ(mm->locked, 0);
}

static void test_the_privileged_pay_nothing(void) {
  struct iofs_charge charge = {IOFS_CHARGE_NONE, 1000, getpid()};
  set_limit(0);
  CHECK_EQ(charge_add(&charge, mm, 1ull << 40), 0);
  charge_remove(&charge, mm, 1ull << 40);
}

/* Several processes may share the memory that pays, and each has a limit of its own. */
static void test_a_process_that_has_ended_keeps_its_limit(void) {
  struct iofs_charge charge = {IOFS_CHARGE_MM, 0, getpid()}, dead = charge;
  struct rlimit limit = {6 * PAGE_SIZE, 6 * PAGE_SIZE};
  dead.tgid = fork();
  if (!dead.tgid) {
    pause();
    _exit(0);
  }
  CHECK_EQ(prlimit(dead.tgid, RLIMIT_MEMLOCK, &limit, NULL), 0);
  charge_note_limit(&dead, mm);
  kill(dead.tgid, SIGKILL);
  CHECK_EQ(waitpid(dead.tgid, NULL, 0), dead.tgid);
  set_limit(4);
  CHECK_EQ(charge_add(&charge, mm, 4), 0);
  CHECK_EQ(charge_add(&charge, mm, 1), -ENOMEM);
  CHECK_EQ(charge_add(&dead, mm, 2), 0);
  CHECK_EQ(charge_add(&dead, mm, 1), -ENOMEM);
  charge_remove(&charge, mm, 6);
}

/* Of more processes than are kept the latest are. */
static void test_the_limits_of_many(void) {
  struct iofs_charge charge = {IOFS_CHARGE_MM, 0, getpid()}, unknown = {IOFS_CHARGE_MM, 0, 0};
  set_limit(3);
  for (int i = 0; i < 3 * MAX_USERS; i++) {
    unknown.tgid = 0x3fff0000 + i;
    charge_note_limit(&unknown, mm);
  }
  CHECK_EQ(charge_add(&unknown, mm, 1), -ENOMEM);
  CHECK_EQ(charge_add(&charge, mm, 3), 0);
  charge_remove(&charge, mm, 3);
}

static void test_no_memory_charges_nothing(void) {
  struct iofs_charge charge = {IOFS_CHARGE_USER, 7, getpid()};
  set_limit(10);
  iofs_fail_allocation(1);
  CHECK_EQ(charge_add(&charge, mm, 1), -ENOMEM);
  CHECK_EQ(iofs_fail_allocation(0), 0);
  CHECK_EQ(charge_of_user(7) + stats.users, 0);
}

int main(void) {
  CHECK_EQ(iofs_mm_open_process(getpid(), &mm), 0);
  RUN(test_a_user_pays_for_all_processes);
  RUN(test_an_address_space_pays_for_itself);
  RUN(test_the_privileged_pay_nothing);
  RUN(test_a_process_that_has_ended_keeps_its_limit);
  RUN(test_the_limits_of_many);
  RUN(test_no_memory_charges_nothing);
  iofs_mm_put(mm);
  return 0;
}
