/*
 * Ioctls that return a file descriptor: a seccomp filter hands them to the server, which installs
 * the descriptor (see iommufs.h). Which ioctls those are is for Python to say.
 *
 * A filter sees numbers, never memory, so it tells nothing but system call and request apart.
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
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

/* ioctl(2) in each system call table that a process on this machine can use. */
static const struct call_table {
  uint32_t arch, ioctl, is_compat;
} call_tables[] = {
#if defined(__x86_64__)
  {AUDIT_ARCH_X86_64, 16, 0},
  {AUDIT_ARCH_X86_64, 0x40000000 | 514, 1}, /* x32 */
  {AUDIT_ARCH_I386, 54, 1},
#elif defined(__aarch64__)
  {AUDIT_ARCH_AARCH64, 29, 0},
  {AUDIT_ARCH_ARM, 54, 1},
#elif defined(__riscv) && __riscv_xlen == 64
  {AUDIT_ARCH_RISCV64, 29, 0},
#else
#error "ioctl's number on this architecture is not known here"
#endif
};

enum { N_TABLES = sizeof(call_tables) / sizeof(call_tables[0]), MAX_REQUESTS = 64 };
enum { MAX_PROGRAM = 4 * N_TABLES + 4 + MAX_REQUESTS };

_Static_assert(sizeof(struct iofs_bpf) == sizeof(struct sock_filter), "one instruction");
_Static_assert(offsetof(struct iofs_bpf, k) == offsetof(struct sock_filter, k), "one instruction");

/* Bytes 4 to 7 of args[1] are not looked at: the kernel's own `cmd` has 32 bits. */
#define REQUEST_OFFSET                                                                             \
  (offsetof(struct seccomp_data, args[1]) + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0))

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

/*
 * For each table: load arch; if it is this one, load nr; if it is ioctl, go to the requests.
 * Then: return ALLOW. The requests: load request; for each: if it is this one, go to the end.
 * Then: return ALLOW. The end: return USER_NOTIF.
 */
int iofs_seccomp_program(const uint32_t *requests, size_t n, struct iofs_bpf *out, size_t size) {
  const size_t first = 4 * N_TABLES + 1; /* of the requests */
  const size_t length = first + 1 + n + 2;
  size_t at = 0;

  if (n > MAX_REQUESTS || length > size)
    return -E2BIG;
  for (size_t i = 0; i < N_TABLES; i++) {
    out[at++] = load(offsetof(struct seccomp_data, arch));
    out[at++] = jump_if_equal(call_tables[i].arch, 0, 2);
    out[at++] = load(offsetof(struct seccomp_data, nr));
    out[at] = jump_if_equal(call_tables[i].ioctl, first - at - 1, 0);
    at++;
  }
  out[at++] = statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  out[at++] = load(REQUEST_OFFSET);
  for (size_t i = 0; i < n; i++)
    out[at++] = jump_if_equal(requests[i], n - i, 0);
  out[at++] = statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  out[at++] = statement(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
  return (int)at;
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
      return call_tables[i].is_compat;
  return 0;
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
    .arg = data->args[2],
    .tid = (int32_t)taken.notif.pid,
    .fd = (int32_t)data->args[0],
    .cmd = (uint32_t)data->args[1],
    .compat = is_compat(data),
  };
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
