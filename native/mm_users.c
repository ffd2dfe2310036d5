/*
 * Which processes run in an address space (see mm.h): threads of one process always share one,
 * vfork() and CLONE_VM make processes that do, until one of them calls exec.
 *
 * The kernel says whether two processes share one now (kcmp), not whether one has left the one that
 * it was in: that it may be alive says nothing, the others may keep it so. But exec leaves 16 random
 * bytes in the memory of a program (AT_RANDOM), by which it is known again.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "mm.h"

/* ---- what exec has left ---------------------------------------------------------------------- */

/* Of a 32-bit program its words have 32 bits. */
static uint64_t secret_at_32(const unsigned char *auxv, size_t size) {
  Elf32_auxv_t entry;
  for (size_t at = 0; at + sizeof entry <= size; at += sizeof entry) {
    memcpy(&entry, auxv + at, sizeof entry);
    if (entry.a_type == AT_RANDOM || entry.a_type == AT_NULL)
      return entry.a_type == AT_RANDOM ? entry.a_un.a_val : 0;
  }
  return 0;
}

uint64_t mm_secret_at(const unsigned char *auxv, size_t size) {
  Elf64_auxv_t entry;
  for (size_t at = 0; at + sizeof entry <= size; at += sizeof entry) {
    memcpy(&entry, auxv + at, sizeof entry);
    if (entry.a_type == AT_RANDOM && entry.a_un.a_val <= INT64_MAX)
      return entry.a_un.a_val;
  }
  return secret_at_32(auxv, size);
}

int mm_is_secret(const struct iofs_mm *mm, const void *secret) {
  return mm->secret_at && !memcmp(secret, mm->secret, sizeof mm->secret);
}

static int read_secret(int tid, uint64_t address, void *secret) {
  struct iovec here = {secret, IOFS_SECRET}, there = {(void *)address, IOFS_SECRET};
  return address && process_vm_readv(tid, &here, 1, &there, 1, 0) == IOFS_SECRET;
}

int mm_has_secret(const struct iofs_mm *mm, int tid) {
  unsigned char secret[IOFS_SECRET];
  return read_secret(tid, mm->secret_at, secret) && mm_is_secret(mm, secret);
}

int iofs_mm_open_process(int pid, struct iofs_mm **out) {
  unsigned char secret[IOFS_SECRET];
  int known = read_secret(pid, iofs_secret_at(pid), secret);
  return iofs_mm_open(pid, pid, known ? secret : NULL, out);
}

/* What can be told without touching anybody's memory, and so without waiting: where things are. It
 * is not certain where addresses are not randomized. */
static int has_auxv(const struct iofs_mm *mm, int tid) {
  unsigned char auxv[sizeof mm->auxv];
  ssize_t size = mm_auxv_of(tid, auxv, sizeof auxv);
  return size == (ssize_t)mm->auxv_size && !memcmp(auxv, mm->auxv, mm->auxv_size);
}

/* The first thread of a process may have ended, and the others go on. */
static int find_thread(const struct iofs_mm *mm, int tgid) {
  char path[32];
  int found = 0;
  if (has_auxv(mm, tgid))
    return tgid;
  snprintf(path, sizeof path, "/proc/%d/task", tgid);
  DIR *threads = opendir(path);
  const struct dirent *entry;
  while (threads && !found && (entry = readdir(threads))) {
    int tid = atoi(entry->d_name);
    if (tid > 0 && has_auxv(mm, tid))
      found = tid;
  }
  if (threads)
    closedir(threads);
  return found;
}

/* ---- users ----------------------------------------------------------------------------------- */

static int has_exited(const struct mm_user *user) {
  struct pollfd pidfd = {.fd = user->pidfd, .events = POLLIN};
  return poll(&pidfd, 1, 0) == 1;
}

static struct mm_user *find_user(struct iofs_mm *mm, int tgid) {
  for (unsigned i = 0; i < mm->n_users; i++)
    if (mm->users[i].tgid == tgid)
      return &mm->users[i];
  return NULL;
}

int mm_may_run(struct iofs_mm *mm, int tgid) { return !!find_thread(mm, tgid); }

int mm_has_user(struct iofs_mm *mm, int tgid) {
  const struct mm_user *user = find_user(mm, tgid);
  return user && !has_exited(user);
}

static void remove_user(struct iofs_mm *mm, struct mm_user *user) {
  close(user->pidfd);
  *user = mm->users[--mm->n_users];
}

static void remove_exited(struct iofs_mm *mm) {
  for (unsigned i = mm->n_users; i--;)
    if (has_exited(&mm->users[i]))
      remove_user(mm, &mm->users[i]);
}

int mm_add_user(struct iofs_mm *mm, int tgid) {
  remove_exited(mm); /* its number may be another's now */
  if (find_user(mm, tgid) || mm->n_users == MAX_USERS)
    return 0;
  int pidfd = (int)syscall(SYS_pidfd_open, tgid, 0);
  if (pidfd < 0) /* our own descriptors may have run out, of which the client knows nothing */
    return errno == EMFILE || errno == ENFILE ? -ENOMEM : -errno;
  mm->users[mm->n_users++] = (struct mm_user){tgid, pidfd};
  return 0;
}

void mm_forget_users(struct iofs_mm *mm) {
  while (mm->n_users)
    remove_user(mm, &mm->users[0]);
}

/* ---- the same one ---------------------------------------------------------------------------- */

/* Two threads that both have one. */
static int share(int tid, int other) {
  return !syscall(SYS_kcmp, tid, other, KCMP_VM, 0, 0);
}

static int parent_of(int tid) {
  char path[32], line[128];
  int parent = 0;
  snprintf(path, sizeof path, "/proc/%d/status", tid);
  FILE *status = fopen(path, "re");
  if (!status)
    return 0;
  while (fgets(line, sizeof line, status) && sscanf(line, "PPid:\t%d", &parent) != 1)
    ;
  fclose(status);
  return parent;
}

void mm_add_parents(struct iofs_mm *mm, int tid) {
  int parent = parent_of(tid);
  while (parent > 0 && share(tid, parent) && !mm_add_user(mm, parent))
    parent = parent_of(parent);
}

int mm_find_process(struct iofs_mm *mm) {
  int found = 0;
  for (unsigned i = 0; i < mm->n_users && !found; i++)
    if (!has_exited(&mm->users[i]))
      found = find_thread(mm, mm->users[i].tgid);
  if (!found || found == mm->process)
    return 0;
  mm->process = found;
  mm->rights = 0;
  return 1;
}

/* Whether all processes that have its addresses share the thread's memory. */
static int is_the_only_one(const struct iofs_mm *mm, int tid) {
  DIR *processes = opendir("/proc");
  const struct dirent *entry;
  int only = processes != NULL;
  while (only && (entry = readdir(processes))) {
    int pid = atoi(entry->d_name);
    only = pid <= 0 || !has_auxv(mm, pid) || share(tid, pid);
  }
  if (processes)
    closedir(processes);
  return only;
}

/* Which of its users are in it still is not certain, but whoever shares the thread's memory is where
 * the thread is. If all have gone, and somebody is in it, that is who has its addresses: a fork of
 * one has them too. */
int mm_is_shared_with(struct iofs_mm *mm, int tid) {
  int n_left = 0;
  for (unsigned i = 0; i < mm->n_users; i++) {
    int thread = has_exited(&mm->users[i]) ? 0 : find_thread(mm, mm->users[i].tgid);
    if (thread && share(tid, thread))
      return 1;
    n_left += !!thread;
  }
  return !n_left && is_the_only_one(mm, tid);
}
