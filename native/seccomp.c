/*
 * System calls that a FUSE server cannot answer as Linux does: a seccomp filter hands them to the
 * server (see iommufs.h). Which ioctls those are is for Python to say.
 *
 * A filter sees numbers, never memory, so it tells nothing but calls and their arguments apart.
 */
#include "iommufs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

/* The calls in each system call table that a process on this machine can use; of 64 bits only what
 * else is noticed. */
static const struct call_table {
  uint32_t arch, is_compat, ioctl, read, mmap;
} call_tables[] = {
#if defined(__x86_64__)
  {AUDIT_ARCH_X86_64, 0, 16, 0, 9},
  {AUDIT_ARCH_X86_64, 1, 0x40000000 | 514, 0, 0}, /* x32 */
  {AUDIT_ARCH_I386, 1, 54, 0, 0},
#elif defined(__aarch64__)
  {AUDIT_ARCH_AARCH64, 0, 29, 63, 222},
  {AUDIT_ARCH_ARM, 1, 54, 0, 0},
#elif defined(__riscv) && __riscv_xlen == 64
  {AUDIT_ARCH_RISCV64, 0, 29, 63, 222},
#else
#error "ioctl's number on this architecture is not known here"
#endif
};

enum { N_TABLES = sizeof(call_tables) / sizeof(call_tables[0]), MAX_REQUESTS = 64 };
enum { TABLE = 4, MORE_CALLS = 2, READ_CHECK = 4, MMAP_CHECK = 3 }; /* instructions */
enum {
  MAX_PROGRAM =
    (TABLE + MORE_CALLS) * N_TABLES + 1 + MAX_REQUESTS + 2 + READ_CHECK + MMAP_CHECK + 2
};

_Static_assert(sizeof(struct iofs_bpf) == sizeof(struct sock_filter), "one instruction");
_Static_assert(offsetof(struct iofs_bpf, k) == offsetof(struct sock_filter, k), "one instruction");

/* The lower and upper half of an argument. The upper one of ioctl's request is not looked at: the
 * kernel's own `cmd` has 32 bits. */
#define IS_BIG_ENDIAN (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)
#define LOWER(i) (offsetof(struct seccomp_data, args[i]) + (IS_BIG_ENDIAN ? 4 : 0))
#define UPPER(i) (offsetof(struct seccomp_data, args[i]) + (IS_BIG_ENDIAN ? 0 : 4))

static struct iofs_bpf statement(uint16_t code, uint32_t k) {
  return (struct iofs_bpf){.code = code, .k = k};
}

static struct iofs_bpf load(uint32_t offset) {
  return statement(BPF_LD | BPF_W | BPF_ABS, offset);
}

static struct iofs_bpf jump_if_equal(uint32_t k, size_t then, size_t otherwise) {
  struct iofs_bpf jump = statement(BPF_JMP | BPF_JEQ | BPF_K, k);
  jump.jt = then;
  jump.jf = otherwise;
  return jump;
}

/* Where the parts of a program begin. */
struct layout {
  size_t requests, read, mmap, allow, notice;
};

static struct layout make_layout(size_t n) {
  struct layout at = {.requests = 1};
  for (size_t i = 0; i < N_TABLES; i++)
    at.requests += call_tables[i].is_compat ? TABLE : TABLE + MORE_CALLS;
  at.read = at.requests + n + 2;
  at.mmap = at.read + READ_CHECK;
  at.allow = at.mmap + MMAP_CHECK;
  at.notice = at.allow + 1;
  return at;
}

/* Load arch; if it is this one, load nr and go to what it is looked at for. */
static struct iofs_bpf *put_table(const struct call_table *table, const struct layout *to,
                                  const struct iofs_bpf *start, struct iofs_bpf *out) {
  size_t n_calls = table->is_compat ? 1 : 1 + MORE_CALLS;
  *out++ = load(offsetof(struct seccomp_data, arch));
  *out++ = jump_if_equal(table->arch, 0, 1 + n_calls);
  *out++ = load(offsetof(struct seccomp_data, nr));
  *out = jump_if_equal(table->ioctl, to->requests - (size_t)(out - start) - 1, 0);
  out++;
  if (table->is_compat)
    return out;
  *out = jump_if_equal(table->read, to->read - (size_t)(out - start) - 1, 0);
  out++;
  *out = jump_if_equal(table->mmap, to->mmap - (size_t)(out - start) - 1, 0);
  return out + 1;
}

/*
 * The tables, then: return ALLOW. The requests: load request; for each: if it is this one, go to
 * the end. Then: return ALLOW. A read of nothing: both halves of its length are 0. An mmap of what
 * others see: MAP_SHARED or MAP_SHARED_VALIDATE, and not MAP_ANONYMOUS. Else: return ALLOW. The end:
 * return USER_NOTIF.
 */
int iofs_seccomp_program(const uint32_t *requests, size_t n, struct iofs_bpf *out, size_t size) {
  const struct iofs_bpf *start = out;
  if (n > MAX_REQUESTS)
    return -E2BIG;
  struct layout at = make_layout(n);
  if (at.notice + 1 > size)
    return -E2BIG;
  for (size_t i = 0; i < N_TABLES; i++)
    out = put_table(&call_tables[i], &at, start, out);
  *out++ = statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  *out++ = load(LOWER(1));
  for (size_t i = 0; i < n; i++)
    *out++ = jump_if_equal(requests[i], at.notice - at.requests - i - 2, 0);
  *out++ = statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  *out++ = load(LOWER(2));
  *out++ = jump_if_equal(0, 0, at.allow - at.read - 2);
  *out++ = load(UPPER(2));
  *out++ = jump_if_equal(0, at.notice - at.read - READ_CHECK, at.allow - at.read - READ_CHECK);
  *out++ = load(LOWER(3));
  *out++ = statement(BPF_ALU | BPF_AND | BPF_K, MAP_SHARED | MAP_ANONYMOUS);
  *out++ = jump_if_equal(MAP_SHARED, 1, 0);
  *out++ = statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  *out++ = statement(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
  return (int)(out - start);
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

static int is_compat(const struct seccomp_data *data) {
  for (size_t i = 0; i < N_TABLES; i++)
    if (call_tables[i].arch == data->arch && call_tables[i].ioctl == (uint32_t)data->nr)
      return (int)call_tables[i].is_compat;
  return 0;
}

static enum iofs_notice_call call_of(const struct seccomp_data *data) {
  const struct call_table *table = call_tables; /* the one of 64 bits */
  if (table->arch == data->arch && table->read == (uint32_t)data->nr)
    return IOFS_NOTICE_READ;
  if (table->arch == data->arch && table->mmap == (uint32_t)data->nr)
    return IOFS_NOTICE_MMAP;
  return IOFS_NOTICE_IOCTL;
}

int iofs_notice_receive(int listener, struct iofs_notice *out) {
  /* A newer kernel may write more than the structure we know. */
  union {
    struct seccomp_notif notif;
    uint8_t room[1024];
  } taken;
  struct seccomp_notif_sizes sizes;

  if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) < 0)
    return -errno;
  if (sizes.seccomp_notif > sizeof(taken))
    return -E2BIG;
  memset(&taken, 0, sizeof(taken)); /* else EINVAL */
  if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &taken) < 0)
    return errno == ENOENT || errno == EINTR ? 0 : -errno; /* ENOENT: killed before we came */
  const struct seccomp_data *data = &taken.notif.data;
  *out = (struct iofs_notice){
    .id = taken.notif.id,
    .tid = (int32_t)taken.notif.pid,
    .call = call_of(data),
  };
  if (out->call == IOFS_NOTICE_MMAP) {
    out->fd = (int32_t)data->args[4];
    out->address = data->args[0];
    out->length = data->args[1];
    out->prot = (uint32_t)data->args[2];
    out->flags = data->args[3];
    out->offset = data->args[5];
  } else {
    out->fd = (int32_t)data->args[0];
    out->cmd = (uint32_t)data->args[1];
    out->arg = data->args[2];
    out->compat = is_compat(data);
  }
  return 1;
}

int iofs_notice_is_valid(int listener, uint64_t id) {
  return ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
}

static int respond(int listener, const struct seccomp_notif_resp *response) {
  union {
    struct seccomp_notif_resp response;
    uint8_t room[1024];
  } sent = {.response = *response};
  int r;

  do
    r = ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &sent);
  while (r < 0 && errno == EINTR);
  return r < 0 ? -errno : 0;
}

int iofs_notice_continue(int listener, uint64_t id) {
  return respond(listener, &(struct seccomp_notif_resp){
                             .id = id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE});
}

int iofs_notice_answer(int listener, uint64_t id, int64_t result) {
  struct seccomp_notif_resp response = {.id = id};

  if (result < 0)
    response.error = (int32_t)result;
  else
    response.val = result;
  return respond(listener, &response);
}

int iofs_notice_add_fd(int listener, uint64_t id, int fd) {
  struct seccomp_notif_addfd add = {.id = id, .srcfd = fd, .newfd_flags = O_CLOEXEC};
  int r;

  do
    r = ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add);
  while (r < 0 && errno == EINTR);
  return r < 0 ? -errno : r;
}
