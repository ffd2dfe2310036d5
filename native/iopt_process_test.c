/* Moving mappings to another process. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "charge.h"
#include "iommufs.h"
#include "mm.h"
#include "stats.h"
#include "test.h"

#define K4 4096ull

static struct iofs_mm *mine, *theirs;
static pid_t child;
static int file;
static struct iofs_iopt *iopts[2];
static struct iofs_domain *domain;

static struct iofs_charge charge_to(uint32_t mode, uint32_t uid, pid_t pid) {
  return (struct iofs_charge){.mode = mode, .uid = uid, .tgid = pid};
}

/* 4 pages of the file in the first iopt, which has a domain, 2 of them in the second as well. */
static void map_file(uint32_t mode) {
  struct iofs_domain_config config = {.aperture_last = (1ull << 48) - 1, .pgsize_bitmap = K4};
  struct iofs_charge charge = charge_to(mode, 1000, getpid());
  struct iofs_piece_list *list;
  uint64_t iova = 0x10000;
  for (int i = 0; i < 2; i++)
    CHECK((iopts[i] = iofs_iopt_new()));
  CHECK_EQ(iofs_domain_new(&config, &domain), 0);
  CHECK_EQ(iofs_iopt_add_domain(iopts[0], domain), 0);
  CHECK_EQ(iofs_iopt_map_file(iopts[0], mine, &charge, file, 0, 4 * K4, IOFS_READ, 1, &iova), 0);
  CHECK_EQ(iofs_iopt_get_pieces(iopts[0], 0x10000, 2 * K4, &list), 0);
  CHECK_EQ(iofs_iopt_map_pieces(iopts[1], list, IOFS_READ, 1, &iova), 0);
  iofs_piece_list_free(list);
}

static void unmap(void) {
  iofs_iopt_remove_domain(iopts[0], domain);
  iofs_domain_put(domain);
  for (int i = 0; i < 2; i++)
    iofs_iopt_free(iopts[i]);
}

static int move(struct iofs_mm *mm, uint32_t uid, pid_t pid) {
  struct iofs_charge charge = charge_to(IOFS_CHARGE_NONE, uid, pid); /* its mode does not count */
  return iofs_iopts_change_process(iopts, 2, mm, &charge);
}

static void set_limit(pid_t pid, uint64_t pages) {
  struct rlimit limit;
  CHECK_EQ(prlimit(pid, RLIMIT_MEMLOCK, NULL, &limit), 0);
  limit.rlim_cur = pages * K4;
  CHECK_EQ(prlimit(pid, RLIMIT_MEMLOCK, &limit, NULL), 0);
}

static void test_a_user_pays_instead_of_the_other(void) {
  map_file(IOFS_CHARGE_USER);
  CHECK_EQ(charge_of_user(1000), 4);
  CHECK_EQ(move(theirs, 1001, child), 0);
  CHECK_EQ(charge_of_user(1000), 0);
  CHECK_EQ(charge_of_user(1001), 4);
  CHECK_EQ(move(theirs, 1001, child), 0);
  CHECK_EQ(charge_of_user(1001), 4);
  unmap();
  CHECK_EQ(charge_of_user(1001), 0);
}

static void test_a_process_pays_instead_of_the_other(void) {
  map_file(IOFS_CHARGE_MM);
  CHECK_EQ(mine->locked, 4);
  CHECK_EQ(move(theirs, 1000, child), 0);
  CHECK_EQ(mine->locked, 0);
  CHECK_EQ(theirs->locked, 4);
  unmap();
  CHECK_EQ(theirs->locked, 0);
}

static void test_who_cannot_pay_gets_nothing(void) {
  map_file(IOFS_CHARGE_USER);
  set_limit(child, 3);
  CHECK_EQ(move(theirs, 1001, child), -ENOMEM);
  CHECK_EQ(charge_of_user(1000), 4);
  CHECK_EQ(charge_of_user(1001), 0);
  unmap();
  CHECK_EQ(charge_of_user(1000), 0);
}

static void test_memory_of_a_process_stays_its_own(void) {
  struct iofs_charge charge = charge_to(IOFS_CHARGE_USER, 1000, getpid());
  uint64_t iova = 0x20000;
  map_file(IOFS_CHARGE_USER);
  CHECK_EQ(iofs_iopt_map_user(iopts[1], mine, &charge, K4, K4, IOFS_READ, 1, &iova), 0);
  CHECK_EQ(move(theirs, 1001, child), -EINVAL);
  CHECK_EQ(charge_of_user(1000), 4);
  unmap();
}

static void test_the_dead_are_told_of_in_mode_mm(void) {
  map_file(IOFS_CHARGE_MM);
  set_limit(child, 4);
  CHECK_EQ(move(theirs, 1000, child), 0);
  kill(child, SIGKILL);
  CHECK_EQ(waitpid(child, NULL, 0), child);
  CHECK_EQ(move(mine, 1000, getpid()), -ESRCH);
  CHECK_EQ(mine->locked, 4);
  CHECK_EQ(theirs->locked, 0);
  unmap();
  CHECK_EQ(mine->locked, 0);
}

int main(void) {
  child = fork();
  if (!child) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* also if a check fails */
    for (;;)
      pause();
  }
  CHECK(child > 0);
  CHECK((file = memfd_create("process", MFD_CLOEXEC)) >= 0);
  CHECK_EQ(ftruncate(file, 4 * K4), 0);
  CHECK_EQ(iofs_mm_open_process(getpid(), &mine), 0);
  CHECK_EQ(iofs_mm_open_process(child, &theirs), 0);
  set_limit(getpid(), 16);
  set_limit(child, 16);
  RUN(test_a_user_pays_instead_of_the_other);
  RUN(test_a_process_pays_instead_of_the_other);
  RUN(test_memory_of_a_process_stays_its_own);
  RUN(test_who_cannot_pay_gets_nothing);
  RUN(test_the_dead_are_told_of_in_mode_mm);
  iofs_mm_put(mine);
  iofs_mm_put(theirs);
  CHECK_EQ(stats.pages, 0);
  CHECK_EQ(stats.users, 0);
  close(file);
  return 0;
}
