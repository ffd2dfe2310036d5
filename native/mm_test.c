/* Handles on address spaces: whose memory they reach, and when they stop. */
#define _GNU_SOURCE
#include "mm.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
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

static int runs(struct iofs_mm *mm, int pid) {
  unsigned char secret[IOFS_SECRET];
  struct iovec here = {secret, IOFS_SECRET}, there = {(void *)mm->secret_at, IOFS_SECRET};
  return process_vm_readv(pid, &here, 1, &there, 1, 0) == IOFS_SECRET &&
         iofs_mm_runs(mm, pid, secret);
}

static void test_one_address_space_is_one_handle(void) {
  struct iofs_mm *a, *b;
  CHECK_EQ(iofs_mm_open_process(getpid(), &a), 0);
  CHECK_EQ(iofs_mm_open_process(getpid(), &b), 0);
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
  CHECK_EQ(iofs_mm_open_process(0x3fffffff, &mm), -ESRCH);
  CHECK_EQ(iofs_mm_open_process(-5, &mm), -ESRCH);
  iofs_fail_allocation(1);
  CHECK_EQ(iofs_mm_open_process(getpid(), &mm), -ENOMEM);
  CHECK_EQ(iofs_fail_allocation(0), 0);
  CHECK_EQ(stats.mms, 0);
}

/* Many spans in one call, some of them odd, both ways, against the memory itself. */
static void test_many_spans(void) {
  enum { SIZE = 1 << 20, N = 150 };
  static unsigned char mirror[SIZE], buf[SIZE];
  unsigned char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct mm_span spans[N];
  struct iofs_mm *mm;
  uint64_t state = 1, done, at = 0;
  CHECK(memory != MAP_FAILED);
  CHECK_EQ(iofs_mm_open_process(getpid(), &mm), 0);
  CHECK(mm->secret_at);
  for (size_t i = 0; i < N; i++) {
    at += test_random(&state) % 2000;
    spans[i] = (struct mm_span){(uintptr_t)memory + at, 1 + test_random(&state) % 4900};
    at += spans[i].length;
  }
  CHECK(at <= SIZE);
  for (size_t i = 0; i < SIZE; i++)
    buf[i] = (unsigned char)test_random(&state);
  for (size_t i = 0, from = 0; i < N; from += spans[i++].length)
    memcpy(mirror + (spans[i].address - (uintptr_t)memory), buf + from, spans[i].length);
  CHECK_EQ(mm_move(mm, spans, N, buf, 1, &done), 0);
  CHECK(!memcmp(mirror, memory, SIZE));
  static unsigned char back[SIZE];
  uint64_t total = done;
  CHECK_EQ(mm_move(mm, spans, N, back, 0, &done), 0);
  CHECK_EQ(done, total);
  CHECK(!memcmp(buf, back, total));
  iofs_mm_put(mm);
  munmap(memory, SIZE);
}

/* What only the file can do, in the middle of what process_vm_* can: write to read-only pages. And
 * where memory ends. */
static void test_the_file_goes_on(void) {
  enum { SIZE = 16 * 4096 };
  unsigned char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  static unsigned char buf[SIZE];
  struct iofs_mm *mm;
  uint64_t done;
  CHECK(memory != MAP_FAILED);
  CHECK_EQ(iofs_mm_open_process(getpid(), &mm), 0);
  memset(buf, 7, SIZE);
  CHECK_EQ(mprotect(memory + 4 * 4096, 4096, PROT_READ), 0);
  CHECK_EQ(mm_write(mm, (uintptr_t)memory, buf, SIZE), 0);
  CHECK(!memcmp(memory, buf, SIZE));
  CHECK_EQ(munmap(memory + 12 * 4096, 4096), 0);
  struct mm_span span = {(uintptr_t)memory + 100, SIZE - 100};
  CHECK_EQ(mm_move(mm, &span, 1, buf, 0, &done), -EFAULT);
  CHECK_EQ(done, 12 * 4096 - 100);
  iofs_mm_put(mm);
  munmap(memory, SIZE);
}

/* The process is another program now, whose memory is where the old one's was. */
static void test_another_secret_is_not_touched(void) {
  enum { SIZE = 16 * 4096 };
  unsigned char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  static unsigned char buf[SIZE];
  struct iofs_mm *mm;
  CHECK(memory != MAP_FAILED);
  struct child child = start_child(NULL);
  CHECK_EQ(iofs_mm_open_process(child.pid, &mm), 0);
  int theirs = mm->process;
  mm->process = getpid(); /* a fork has the same secret, so give us another one */
  mm->secret[0] ^= 1;
  memset(buf, 9, SIZE);
  CHECK_EQ(mm_write(mm, (uintptr_t)memory, buf, SIZE), 0); /* went to the child, by the file */
  for (size_t i = 0; i < SIZE; i++)
    CHECK_EQ(memory[i], 0);
  memset(buf, 0, SIZE);
  CHECK_EQ(mm_read(mm, (uintptr_t)memory, buf, SIZE), 0);
  CHECK(buf[0] == 9 && buf[SIZE - 1] == 9);
  mm->process = theirs;
  mm->secret[0] ^= 1;
  iofs_mm_put(mm);
  end_child(&child);
  munmap(memory, SIZE);
}

static void test_a_fork_is_another_address_space(void) {
  static char word[16] = "parent";
  struct iofs_mm *mine, *theirs;
  char buf[16] = "";
  struct child child = start_child(NULL);
  CHECK_EQ(iofs_mm_open_process(getpid(), &mine), 0);
  CHECK_EQ(iofs_mm_open_process(child.pid, &theirs), 0);
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
  CHECK_EQ(iofs_mm_open_process(child.pid, &mm), 0);
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
  CHECK_EQ(iofs_mm_open_process(child.pid, &before), 0);
  close(child.go);
  CHECK_EQ(read(child.done, &byte, 1), 1); /* the new program speaks */
  check_gone(before, word);
  CHECK_EQ(iofs_mm_open_process(child.pid, &after), 0);
  CHECK(after != before);
  CHECK_EQ(iofs_mm_alive(after), 1);
  iofs_mm_put(before);
  iofs_mm_put(after);
  end_child(&child);
}

/* ---- processes that share their memory ----------------------------------------------------------- */

static int share(void *arg) {
  const int *ends = arg;
  int never[2];
  char byte;
  if (read(ends[0], &byte, 1) == 1 && dup2(ends[1], 1) == 1 && !pipe(never) && !dup2(never[0], 0))
    execl("/bin/sh", "sh", "-c", "echo; read never", NULL);
  _exit(0);
}

/* A process that shares our memory until it is told to become a program, which then waits. */
static struct child start_sharing_child(void) {
  enum { STACK = 1 << 18 };
  static int ends[2]; /* it has our memory */
  int go[2], done[2];
  unsigned char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(stack != MAP_FAILED);
  CHECK_EQ(pipe(go) | pipe(done), 0);
  ends[0] = go[0];
  ends[1] = done[1];
  struct child child = {clone(share, stack + STACK, CLONE_VM | SIGCHLD, ends), go[1], done[0]};
  CHECK(child.pid > 0);
  return child;
}

static void let_it_exec(const struct child *child) {
  char byte;
  CHECK_EQ(write(child->go, "!", 1), 1);
  CHECK_EQ(read(child->done, &byte, 1), 1);
}

static void test_who_shares_it_has_the_same_handle_until_an_exec(void) {
  static char word[8] = "ours";
  struct iofs_mm *mine, *theirs, *after;
  char buf[8];
  int me = getpid();
  struct child child = start_sharing_child();
  CHECK_EQ(iofs_mm_open_process(me, &mine), 0);
  CHECK_EQ(iofs_mm_open_process(child.pid, &theirs), 0);
  CHECK(mine == theirs);
  CHECK_EQ(stats.mms, 1);
  CHECK_EQ(runs(mine, child.pid), 1);
  let_it_exec(&child);
  CHECK_EQ(iofs_mm_alive(theirs), 1); /* through us */
  CHECK_EQ(runs(theirs, child.pid), 0);
  CHECK_EQ(runs(theirs, me), 1);
  mm_look_again(theirs);
  CHECK_EQ(theirs->process, me);
  CHECK_EQ(iofs_mm_open_process(child.pid, &after), 0);
  CHECK(after != mine);
  CHECK(mm_read(after, (uintptr_t)word, buf, 8) || strcmp(buf, word) != 0);
  iofs_mm_put(after);
  iofs_mm_put(theirs);
  iofs_mm_put(mine);
  end_child(&child);
}

/* The child was the only one that we knew of. */
static void test_a_parent_that_shares_it_is_known(void) {
  struct iofs_mm *mine, *theirs;
  int me = getpid();
  struct child child = start_sharing_child();
  CHECK_EQ(iofs_mm_open_process(child.pid, &theirs), 0);
  let_it_exec(&child);
  CHECK_EQ(iofs_mm_open_process(me, &mine), 0);
  CHECK(mine == theirs);
  iofs_mm_put(mine);
  end_child(&child);
  mm_look_again(theirs);
  CHECK_EQ(theirs->process, me);
  iofs_mm_put(theirs);
}

/* Of the processes that share it, the one that we knew has gone. */
static void test_who_is_left_is_known(void) {
  struct iofs_mm *before, *after;
  int me = getpid(), status;
  struct child first = start_sharing_child();
  CHECK_EQ(iofs_mm_open_process(first.pid, &before), 0);
  mm_forget_users(before); /* the parent that shares it, which is us */
  CHECK_EQ(mm_add_user(before, first.pid), 0);
  kill(first.pid, SIGKILL);
  CHECK_EQ(waitpid(first.pid, &status, 0), first.pid);
  struct child fork = start_child(NULL);
  CHECK_EQ(iofs_mm_open_process(me, &after), 0);
  CHECK(after != before); /* the fork might be it */
  iofs_mm_put(after);
  close(fork.go);
  end_child(&fork);
  CHECK_EQ(iofs_mm_open_process(me, &after), 0);
  CHECK(after == before);
  CHECK_EQ(iofs_mm_runs(after, me, after->secret), 1);
  iofs_mm_put(after);
  iofs_mm_put(before);
}

/* A program may write over what exec has left: then we do not know it any more. */
static void test_a_changed_secret(void) {
  struct iofs_mm *mine, *again;
  int me = getpid();
  CHECK_EQ(iofs_mm_open_process(me, &mine), 0);
  unsigned char *secret = (unsigned char *)mine->secret_at;
  secret[3] ^= 1;
  CHECK_EQ(mm_has_secret(mine, me), 0);
  CHECK_EQ(runs(mine, me), 0);
  CHECK_EQ(iofs_mm_open_process(me, &again), 0);
  CHECK(again != mine);
  CHECK_EQ(runs(again, me), 1);
  secret[3] ^= 1;
  iofs_mm_put(again);
  iofs_mm_put(mine);
}

/* Where nothing is known of a secret, addresses and a process that has not ended must do. */
static void test_without_a_secret(void) {
  struct iofs_mm *mine, *again, *theirs;
  int me = getpid();
  struct child child = start_child(NULL);
  CHECK_EQ(iofs_mm_open(me, me, NULL, &mine), 0);
  CHECK_EQ(iofs_mm_open(me, me, NULL, &again), 0);
  CHECK_EQ(iofs_mm_open(child.pid, child.pid, NULL, &theirs), 0);
  CHECK(mine == again && mine != theirs);
  CHECK_EQ(iofs_mm_runs(mine, me, NULL), 1);
  CHECK_EQ(iofs_mm_has(theirs, me), 0);
  CHECK_EQ(iofs_mm_has(theirs, child.pid), 1);
  close(child.go);
  end_child(&child);
  CHECK_EQ(iofs_mm_has(theirs, child.pid), 0);
  iofs_mm_put(theirs);
  child = start_sharing_child();
  CHECK_EQ(iofs_mm_open(child.pid, child.pid, NULL, &theirs), 0);
  CHECK(theirs == mine);
  CHECK_EQ(iofs_mm_runs(theirs, child.pid, NULL), 1);
  let_it_exec(&child);
  CHECK_EQ(iofs_mm_runs(theirs, child.pid, NULL), 0);
  CHECK_EQ(iofs_mm_runs(theirs, me, NULL), 1);
  end_child(&child);
  iofs_mm_put(theirs);
  iofs_mm_put(again);
  iofs_mm_put(mine);
}

static void test_where_a_secret_lies(void) {
  const uint64_t wide[] = {33, 0x7fff0000, 25, 0x7ffe12345678, 0, 0};
  const uint32_t narrow[] = {33, 0xf7f00000, 6, 4096, 25, 0xffe12340, 0, 0};
  const uint32_t none[] = {33, 0xf7f00000, 0, 0, 25, 0xffe12340};
  CHECK_EQ(mm_secret_at((const void *)wide, sizeof wide), 0x7ffe12345678);
  CHECK_EQ(mm_secret_at((const void *)narrow, sizeof narrow), 0xffe12340);
  CHECK_EQ(mm_secret_at((const void *)none, sizeof none), 0);
  CHECK_EQ(mm_secret_at((const void *)wide, 16), 0);
}

static void test_mappings_by_question_and_by_text_agree(void) {
  char *memory = mmap(NULL, 5 * PAGE_SIZE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  struct iofs_mm *mm;
  struct vma vma, text;
  int n = 0;
  CHECK_EQ(iofs_mm_open_process(getpid(), &mm), 0);
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
  RUN(test_many_spans);
  RUN(test_the_file_goes_on);
  RUN(test_another_secret_is_not_touched);
  RUN(test_a_fork_is_another_address_space);
  RUN(test_an_exit_ends_it);
  RUN(test_an_exec_ends_it_and_begins_another);
  RUN(test_who_shares_it_has_the_same_handle_until_an_exec);
  RUN(test_a_parent_that_shares_it_is_known);
  RUN(test_who_is_left_is_known);
  RUN(test_a_changed_secret);
  RUN(test_without_a_secret);
  RUN(test_where_a_secret_lies);
  RUN(test_mappings_by_question_and_by_text_agree);
  return 0;
}
