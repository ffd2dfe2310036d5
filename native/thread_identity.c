/*
 * Who a waiting thread of a client is.
 *
 * All answers come from descriptors that stay with the thread, not with its number: a pidfd, and
 * the link to its user namespace.
 */
#define _GNU_SOURCE
#include "thread_identity.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PIDFD_THREAD O_EXCL
#define CAPABILITY_IPC_LOCK 14

/* PIDFD_GET_INFO of <linux/pidfd.h>, Linux 6.13, in its first size. */
struct pidfd_info {
  uint64_t mask, cgroup;
  uint32_t pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid, spare;
};
#define PIDFD_GET_INFO _IOWR(0xff, 11, struct pidfd_info)
#define INFO_OF_CREDENTIALS 3 /* pids, and ids of users and groups */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char our_userns[64];
static uint64_t obtainable; /* capabilities that somebody in our container can have */

static void init(void) {
  ssize_t n = readlink("/proc/self/ns/user", our_userns, sizeof our_userns - 1);
  our_userns[n > 0 ? n : 0] = 0;
  for (int capability = 0; capability < 64; capability++)
    if (prctl(PR_CAPBSET_READ, capability) == 1)
      obtainable |= 1ull << capability;
}

static void forget(struct known_thread *kept) {
  if (kept->tid) {
    close(kept->pidfd);
    close(kept->userns);
  }
  kept->tid = 0;
}

static int ask(const struct known_thread *kept, struct pidfd_info *info) {
  *info = (struct pidfd_info){.mask = INFO_OF_CREDENTIALS};
  if (ioctl(kept->pidfd, PIDFD_GET_INFO, info))
    return errno == ENOTTY || errno == EINVAL ? -ENOSYS : -errno;
  if ((info->mask & INFO_OF_CREDENTIALS) != INFO_OF_CREDENTIALS || (int)info->pid != kept->tid)
    return -ESRCH;
  return 0;
}

static int open_both(int tid, struct known_thread *kept) {
  char path[40];
  int pidfd = (int)syscall(SYS_pidfd_open, tid, PIDFD_THREAD);
  if (pidfd < 0)
    return -errno;
  snprintf(path, sizeof path, "/proc/%d/ns/user", tid);
  int userns = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
  if (userns < 0) {
    int err = -errno;
    close(pidfd);
    return err;
  }
  *kept = (struct known_thread){.tid = tid, .pidfd = pidfd, .userns = userns};
  return 0;
}

/* It leaves nothing if it fails. */
static int find(int tid, struct known_thread *kept) {
  struct pidfd_info info;
  forget(kept);
  int err = open_both(tid, kept);
  if (err)
    return err;
  if ((err = ask(kept, &info)))
    forget(kept);
  else
    kept->tgid = (int)info.tgid;
  return err;
}

/* As Caller.capable() in Python: what our container withholds from all belongs to whoever may use
 * all the others, and uses some. */
static int has_capability(int tid, int *out) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, tid};
  struct __user_cap_data_struct data[2];
  const uint64_t bit = 1ull << CAPABILITY_IPC_LOCK;
  if (syscall(SYS_capget, &header, data))
    return -errno;
  uint64_t effective = (uint64_t)data[1].effective << 32 | data[0].effective;
  uint64_t permitted = (uint64_t)data[1].permitted << 32 | data[0].permitted;
  *out = effective & bit || (!(obtainable & bit) && effective && permitted == obtainable);
  return 0;
}

static int is_in_our_userns(const struct known_thread *kept, int *out) {
  char text[sizeof our_userns];
  ssize_t n = readlinkat(kept->userns, "", text, sizeof text - 1);
  if (n < 0)
    return -errno;
  text[n] = 0;
  *out = !strcmp(text, our_userns);
  return 0;
}

/* Its process is the same for as long as the thread is: for as long as either descriptor can be
 * asked, which are asked no more than is needed. */
static int identify(const struct known_thread *kept, struct thread_identity *out) {
  struct pidfd_info info;
  *out = (struct thread_identity){.tgid = kept->tgid};
  int err = has_capability(kept->tid, &out->may_lock);
  if (!err && out->may_lock)
    err = is_in_our_userns(kept, &out->may_lock);
  if (err || out->may_lock)
    return err;
  if (!(err = ask(kept, &info)))
    out->uid = info.ruid;
  return err;
}

int thread_identify(struct known_threads *known, int tid, struct thread_identity *out) {
  if (tid <= 0)
    return -ESRCH;
  pthread_once(&once, init);
  struct known_thread *kept = &known->threads[(unsigned)tid % N_KNOWN_THREADS];
  int err = kept->tid == tid ? identify(kept, out) : -ESRCH;
  if (err && !(err = find(tid, kept))) { /* the number was another thread's */
    err = identify(kept, out);
    out->is_new = 1;
  }
  return err;
}

int known_thread_tgid(const struct known_threads *known, int tid) {
  const struct known_thread *kept = &known->threads[(unsigned)tid % N_KNOWN_THREADS];
  return tid > 0 && kept->tid == tid ? kept->tgid : 0;
}

void known_threads_forget(struct known_threads *known) {
  for (size_t i = 0; i < N_KNOWN_THREADS; i++)
    forget(&known->threads[i]);
}
