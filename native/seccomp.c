/*
 * Which system calls of a run wait for the server: a seccomp filter (see "notices" in serve.h).
 * Which ioctls those are is for Python to say. How the server hears of them: notice.c.
 *
 * A filter sees numbers, never memory, so it tells nothing but calls and their arguments apart.
 */
#include "notice.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif

#if defined(__x86_64__)
#define NATIVE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE AUDIT_ARCH_AARCH64
#elif defined(__riscv) && __riscv_xlen == 64
#define NATIVE AUDIT_ARCH_RISCV64
#else
#error "the numbers of other tables of system calls on this architecture are not known here"
#endif
#define X32 0x40000000

/* What is noticed, in each system call table that a process on this machine can use; the calls of
 * one table together. */
static const struct iofs_noticed noticed[] = {
  {NATIVE, SYS_ioctl, IOFS_NOTICE_IOCTL, 0},
  {NATIVE, SYS_read, IOFS_NOTICE_READ, 0},
  {NATIVE, SYS_pread64, IOFS_NOTICE_PREAD, 0},
  {NATIVE, SYS_write, IOFS_NOTICE_WRITE, 0},
  {NATIVE, SYS_pwrite64, IOFS_NOTICE_PWRITE, 0},
  {NATIVE, SYS_mmap, IOFS_NOTICE_MMAP, 0},
  {NATIVE, SYS_lseek, IOFS_NOTICE_LSEEK, 0},
  {NATIVE, SYS_fstat, IOFS_NOTICE_FSTAT, 0},
  {NATIVE, SYS_newfstatat, IOFS_NOTICE_FSTATAT, 0},
  {NATIVE, SYS_statx, IOFS_NOTICE_STATX, 0},
#if defined(__x86_64__)
  {NATIVE, X32 | 514, IOFS_NOTICE_IOCTL, 1},
  {NATIVE, X32 | SYS_lseek, IOFS_NOTICE_LSEEK, 1},
  {NATIVE, X32 | SYS_fstat, IOFS_NOTICE_FSTAT, 1},
  {NATIVE, X32 | SYS_newfstatat, IOFS_NOTICE_FSTATAT, 1},
  {NATIVE, X32 | SYS_statx, IOFS_NOTICE_STATX, 1},
  {AUDIT_ARCH_I386, 54, IOFS_NOTICE_IOCTL, 1},
  {AUDIT_ARCH_I386, 19, IOFS_NOTICE_LSEEK, 1},
  {AUDIT_ARCH_I386, 140, IOFS_NOTICE_LLSEEK, 1},
  {AUDIT_ARCH_I386, 197, IOFS_NOTICE_FSTAT, 1},
  {AUDIT_ARCH_I386, 300, IOFS_NOTICE_FSTATAT, 1},
  {AUDIT_ARCH_I386, 383, IOFS_NOTICE_STATX, 1},
#elif defined(__aarch64__)
  {AUDIT_ARCH_ARM, 54, IOFS_NOTICE_IOCTL, 1},
#endif
};

enum { N_NOTICED = sizeof(noticed) / sizeof(noticed[0]), MAX_REQUESTS = 64 };
enum { TABLE = 4, NOTHING_CHECK = 4, MMAP_CHECK = 4, FLAG_CHECK = 2 }; /* instructions */
enum {
  MAX_PROGRAM = TABLE * N_NOTICED + N_NOTICED + 1 + MAX_REQUESTS + 2 + NOTHING_CHECK + MMAP_CHECK +
                2 * FLAG_CHECK + 2
};

_Static_assert(sizeof(struct iofs_bpf) == sizeof(struct sock_filter), "one instruction");
_Static_assert(offsetof(struct iofs_bpf, k) == offsetof(struct sock_filter, k), "one instruction");

/* The lower and upper half of an argument. The upper one of ioctl's request, and of flags, is not
 * looked at: the kernel's own have 32 bits. */
#define IS_BIG_ENDIAN (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)
#define LOWER(i) (offsetof(struct seccomp_data, args[i]) + (IS_BIG_ENDIAN ? 4 : 0))
#define UPPER(i) (offsetof(struct seccomp_data, args[i]) + (IS_BIG_ENDIAN ? 0 : 4))

const struct iofs_noticed *iofs_noticed_call(const struct seccomp_data *data) {
  for (size_t i = 0; i < N_NOTICED; i++)
    if (noticed[i].arch == data->arch && noticed[i].nr == (uint32_t)data->nr)
      return &noticed[i];
  return NULL;
}

/* ---- the program ----------------------------------------------------------------------------- */

/* A program that grows; where its parts begin. */
struct program {
  struct iofs_bpf *out;
  size_t at, requests, nothing, mmap, fstatat, statx, allow, notice;
};

static void put(struct program *program, uint16_t code, uint32_t k) {
  program->out[program->at++] = (struct iofs_bpf){.code = code, .k = k};
}

static void put_load(struct program *program, uint32_t offset) {
  put(program, BPF_LD | BPF_W | BPF_ABS, offset);
}

/* Jump to a place further on if the test (BPF_JEQ, BPF_JSET) is true, or else to another. */
static void put_jump(struct program *program, uint16_t test, uint32_t k, size_t then,
                     size_t otherwise) {
  size_t next = program->at + 1;
  put(program, BPF_JMP | BPF_K | test, k);
  program->out[next - 1].jt = then - next;
  program->out[next - 1].jf = otherwise - next;
}

static size_t check_of(const struct program *program, uint32_t call) {
  switch (call) {
  case IOFS_NOTICE_IOCTL:
    return program->requests;
  case IOFS_NOTICE_READ:
  case IOFS_NOTICE_PREAD:
  case IOFS_NOTICE_WRITE:
  case IOFS_NOTICE_PWRITE:
    return program->nothing;
  case IOFS_NOTICE_MMAP:
    return program->mmap;
  case IOFS_NOTICE_FSTATAT:
    return program->fstatat;
  case IOFS_NOTICE_STATX:
    return program->statx;
  default:
    return program->notice;
  }
}

/* The calls of one table, from the first on; returns the first of the next. If it is the caller's
 * table, load nr and go to what it is looked at for. */
static size_t put_table(struct program *program, size_t first) {
  const uint32_t arch = noticed[first].arch;
  size_t end = first;
  while (end < N_NOTICED && noticed[end].arch == arch)
    end++;
  put_load(program, offsetof(struct seccomp_data, arch));
  put_jump(program, BPF_JEQ, arch, program->at + 1, program->at + TABLE - 1 + (end - first));
  put_load(program, offsetof(struct seccomp_data, nr));
  for (size_t i = first; i < end; i++)
    put_jump(program, BPF_JEQ, noticed[i].nr, check_of(program, noticed[i].call), program->at + 1);
  put(program, BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  return end;
}

static void put_tables(struct program *program) {
  for (size_t i = 0; i < N_NOTICED;)
    i = put_table(program, i);
  put(program, BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
}

static void put_requests(struct program *program, const uint32_t *requests, size_t n) {
  put_load(program, LOWER(1));
  for (size_t i = 0; i < n; i++)
    put_jump(program, BPF_JEQ, requests[i], program->notice, program->at + 1);
  put(program, BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
}

/* A read or write of nothing: both halves of its length are 0. */
static void put_nothing(struct program *program) {
  put_load(program, LOWER(2));
  put_jump(program, BPF_JEQ, 0, program->at + 1, program->allow);
  put_load(program, UPPER(2));
  put_jump(program, BPF_JEQ, 0, program->notice, program->allow);
}

/* An mmap of a file, but not those by which a dynamic loader maps every library. */
static void put_mmap(struct program *program) {
  put_load(program, LOWER(3));
  put_jump(program, BPF_JSET, MAP_ANONYMOUS, program->allow, program->at + 1);
  put_jump(program, BPF_JSET, MAP_SHARED, program->notice, program->at + 1);
  put_jump(program, BPF_JSET, MAP_FIXED | MAP_DENYWRITE, program->allow, program->notice);
}

/* What may concern a descriptor: AT_EMPTY_PATH among the flags. */
static void put_flags(struct program *program, size_t argument) {
  put_load(program, LOWER(argument));
  put_jump(program, BPF_JSET, AT_EMPTY_PATH, program->notice, program->allow);
}

static size_t n_tables(void) {
  size_t n = 1;
  for (size_t i = 1; i < N_NOTICED; i++)
    n += noticed[i].arch != noticed[i - 1].arch;
  return n;
}

int iofs_seccomp_program(const uint32_t *requests, size_t n, struct iofs_bpf *out, size_t size) {
  struct program program = {.out = out};
  if (n > MAX_REQUESTS)
    return -E2BIG;
  program.requests = TABLE * n_tables() + N_NOTICED + 1;
  program.nothing = program.requests + 1 + n + 1;
  program.mmap = program.nothing + NOTHING_CHECK;
  program.fstatat = program.mmap + MMAP_CHECK;
  program.statx = program.fstatat + FLAG_CHECK;
  program.allow = program.statx + FLAG_CHECK;
  program.notice = program.allow + 1;
  if (program.notice + 1 > size)
    return -E2BIG;
  put_tables(&program);
  put_requests(&program, requests, n);
  put_nothing(&program);
  put_mmap(&program);
  put_flags(&program, 3);
  put_flags(&program, 2);
  put(&program, BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  put(&program, BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
  return (int)program.at;
}

int iofs_seccomp_install(const uint32_t *requests, size_t n) {
  struct iofs_bpf program[MAX_PROGRAM];
  const int length = iofs_seccomp_program(requests, n, program, MAX_PROGRAM);
  unsigned long flags =
    SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
  struct sock_fprog fprog = {.len = length, .filter = (struct sock_filter *)program};

  if (length < 0)
    return length;
  long fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &fprog);
  if (fd < 0 && errno == EINVAL) { /* before Linux 5.19 a signal may interrupt the caller */
    flags &= ~SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &fprog);
  }
  return fd < 0 ? -errno : (int)fd;
}
