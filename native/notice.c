/* Receiving and answering notices (see serve.h), one at a time. */
#include "notice.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The descriptor that a call is about. */
static int32_t fd_of(uint32_t call, const struct seccomp_data *data) {
  return (int32_t)data->args[call == IOFS_NOTICE_MMAP ? 4 : 0];
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
  const struct iofs_noticed *noticed = iofs_noticed_call(data);
  *out = (struct iofs_notice){.id = taken.notif.id, .tid = (int32_t)taken.notif.pid, .fd = -1};
  if (noticed) { /* else another's filter gave us this, which the kernel may carry out */
    out->call = noticed->call;
    out->compat = noticed->compat;
    out->i386 = data->arch == AUDIT_ARCH_I386;
    out->fd = fd_of(out->call, data);
  }
  memcpy(out->args, data->args, sizeof out->args);
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

int iofs_notice_add_fd(int listener, uint64_t id, int fd, int flags) {
  struct seccomp_notif_addfd add = {
      .id = id, .srcfd = (uint32_t)fd, .newfd_flags = (uint32_t)flags};
  int r;

  do
    r = ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add);
  while (r < 0 && errno == EINTR);
  return r < 0 ? -errno : r;
}
