/* Handles on address spaces: whose memory they reach, and when they stop. */
#define _GNU_SOURCE
#include "mm.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "iommufs.h"
#include "stats.h"
#include "test.h"

/* A process with our memory as it is now that does nothing until its end of the pipe is closed;
 * then it ends, or turns into another program if `program`. */
struct child {
  pid_t pid;
  int go, done;
};

static struct child start_child(const char *program) {
  int go[2], done[2];
  CHECK_EQ(pipe(go) | pipe(done), 0);
  struct child child = {fork(), go[1], done[0]};
  CHECK(child.pid >= 0);
  if (!child.pid) {
    char byte;
    close(go[1]);
    close(done[0]);
    if (read(go[0], &byte, 1) == 0 && program) {
      dup2(done[1], 1); /* it says something there, and waits for what never comes */
      int never[2];
      if (pipe(never) == 0 && dup2(never[0], 0) == 0)
        execl("/bin/sh", "sh", "-c", program, NULL);
    }
    _exit(0);
  }
  close(go[0]);
  close(done[1]);
  return child;
}

static void end_child(struct child *child) {
  kill(child->pid, SIGKILL);
  CHECK_EQ(waitpid(child->pid, NULL, 0), child->pid);
  close(child->done);
}

static void test_one_address_space_is_one_handle(void) {
  struct iofs_mm *a, *b;
  CHECK_EQ(iofs_mm_open(getpid(), &a), 0);
  CHECK_EQ(iofs_mm_open(getpid(), &b), 0);
  CHECK(a == b);
  CHECK_EQ(stats.mms, 1);
  CHECK_EQ(iofs_mm_alive(a), 1);
  iofs_mm_put(a);
  CHECK_EQ(stats.mms, 1);
  iofs_mm_put(b);
  CHECK_EQ(stats.mms, 0);
}

static void test_errors(void) {
  struct iofs_mm *mm;
  CHECK_EQ(iofs_mm_open(0x3fffffff, &mm), -ESRCH);
  CHECK_EQ(iofs_mm_open(-5, &mm), -ESRCH);
  iofs_fail_allocation(1);
  CHECK_EQ(iofs_mm_open(getpid(), &mm), -ENOMEM);
  CHECK_EQ(iofs_fail_allocation(0), 0);
  CHECK_EQ(stats.mms, 0);
}

static void test_a_fork_is_another_address_space(void) {
  static char word[16] = "parent";
  struct iofs_mm *mine, *theirs;
  char buf[16] = "";
  struct child child = start_child(NULL);
  CHECK_EQ(iofs_mm_open(getpid(), &mine), 0);
  CHECK_EQ(iofs_mm_open(child.pid, &theirs), 0);
  CHECK(mine != theirs);
  CHECK_EQ(mm_write(theirs, (uintptr_t)word, "child", 6), 0);
  CHECK_EQ(mm_read(theirs, (uintptr_t)word, buf, 16), 0);
  CHECK(!strcmp(buf, "child") && !strcmp(word, "parent"));
  CHECK_EQ(mm_read(theirs, 0, buf, 1), -EFAULT);
  CHECK_EQ(mm_read(theirs, UINT64_MAX - 4, buf, 4), -EFAULT);
  close(child.go);
  end_child(&child);
  iofs_mm_put(mine);
  iofs_mm_put(theirs);
}

static void check_gone(struct iofs_mm *mm, void *address) {
  struct vma vma;
  char buf[4];
  CHECK_EQ(iofs_mm_alive(mm), 0);
  CHECK_EQ(mm_read(mm, (uintptr_t)address, buf, 4), -EFAULT);
  CHECK_EQ(mm_write(mm, (uintptr_t)address, buf, 4), -EFAULT);
  CHECK_EQ(mm_find_vma(mm, (uintptr_t)address, &vma), -EFAULT);
  CHECK_EQ(mm_find_vma_in_text(mm, (uintptr_t)address, &vma), -EFAULT);
}

static void test_an_exit_ends_it(void) {
  static char word[4];
  struct iofs_mm *mm;
  struct child child = start_child(NULL);
  CHECK_EQ(iofs_mm_open(child.pid, &mm), 0);
  CHECK_EQ(iofs_mm_alive(mm), 1);
  close(child.go);
  end_child(&child);
  check_gone(mm, word);
  iofs_mm_put(mm);
}

static void test_an_exec_ends_it_and_begins_another(void) {
  static char word[4];
  struct iofs_mm *before, *after;
  char byte;
  struct child child = start_child("echo; read never");
  CHECK_EQ(iofs_mm_open(child.pid, &before), 0);
  close(child.go);
  CHECK_EQ(read(child.done, &byte, 1), 1); /* the new program speaks */
  check_gone(before, word);
  CHECK_EQ(iofs_mm_open(child.pid, &after), 0);
  CHECK(after != before);
  CHECK_EQ(iofs_mm_alive(after), 1);
  iofs_mm_put(before);
  iofs_mm_put(after);
  end_child(&child);
}

static void test_mappings_by_question_and_by_text_agree(void) {
  char *memory = mmap(NULL, 5 * PAGE_SIZE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  struct iofs_mm *mm;
  struct vma vma, text;
  int n = 0;
  CHECK_EQ(iofs_mm_open(getpid(), &mm), 0);
  mprotect(memory + PAGE_SIZE, PAGE_SIZE, PROT_WRITE);
  munmap(memory + 3 * PAGE_SIZE, PAGE_SIZE);
  for (uint64_t at = (uintptr_t)memory; n < 5; at += PAGE_SIZE, n++) {
    int err = mm_find_vma(mm, at, &vma);
    CHECK_EQ(err, n == 3 ? -EFAULT : 0);
    CHECK_EQ(mm_find_vma_in_text(mm, at, &text), err);
    CHECK(err || !memcmp(&vma, &text, sizeof vma));
    CHECK(err || (vma.ino && vma.flags == (VMA_SHARED | (n == 1 ? VMA_WRITE : VMA_READ))));
    CHECK(err || vma.offset + at - vma.start == (uint64_t)n * PAGE_SIZE);
  }
  CHECK_EQ(mm_find_vma(mm, (uintptr_t)&n, &vma), 0);
  CHECK(!vma.ino && vma.flags == (VMA_READ | VMA_WRITE));
  CHECK_EQ(mm_find_vma_in_text(mm, 0, &text), -EFAULT);
  CHECK_EQ(mm_find_vma_in_text(mm, UINT64_MAX, &text), -EFAULT);
  munmap(memory, 5 * PAGE_SIZE);
  iofs_mm_put(mm);
}

int main(void) {
  RUN(test_one_address_space_is_one_handle);
  RUN(test_errors);
  RUN(test_a_fork_is_another_address_space);
  RUN(test_an_exit_ends_it);
  RUN(test_an_exec_ends_it_and_begins_another);
  RUN(test_mappings_by_question_and_by_text_agree);
  return 0;
}
