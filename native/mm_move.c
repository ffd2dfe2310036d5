/*
 * Moving bytes of client memory (see mm.h). Two ways:
 *
 * The mem file of /proc belongs to the address space, so it can never reach another one, but it
 * copies page by page through a buffer. process_vm_readv() and _writev() copy at once, many spans
 * in a call, but name a process: after execve() that is another program.
 *
 * So the second way is for large moves only, and only while both of these hold; else, and wherever
 * it stops short, the first one goes on.
 *
 * - The process still has the 16 random bytes that execve() left in its memory (AT_RANDOM), when
 *   looked at no longer than SECRET_NS ago. A program that comes in between would be written to.
 *   That harms nobody but its owner, because also
 * - the process has our rights: user, capabilities, user namespace. What a device of its own could
 *   write there, it could write itself. Asked every RIGHTS_NS: a process that has had our rights
 *   until then had no use for a device to reach anything.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "mm.h"

#define LARGE (2 * PAGE_SIZE) /* from here on process_vm_* is the faster one */
#define N_SPANS 64            /* of one call */
#define SECRET_NS 40000ull
#define RIGHTS_NS 100000000ull

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- the same rights ------------------------------------------------------------------------- */

struct rights {
  uint64_t uids[4];
  uint64_t permitted, effective;
  uint64_t user_ns[2];
};

static int read_rights(const char *process, struct rights *out) {
  char path[48], line[128];
  struct stat ns;
  unsigned found = 0;
  snprintf(path, sizeof path, "/proc/%s/ns/user", process);
  if (stat(path, &ns))
    return 0;
  out->user_ns[0] = ns.st_dev;
  out->user_ns[1] = ns.st_ino;
  snprintf(path, sizeof path, "/proc/%s/status", process);
  FILE *status = fopen(path, "re");
  if (!status)
    return 0;
  uint64_t *uids = out->uids;
  while (fgets(line, sizeof line, status)) {
    found += sscanf(line, "Uid: %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &uids[0], &uids[1],
                    &uids[2], &uids[3]) == 4;
    found += sscanf(line, "CapPrm: %" SCNx64, &out->permitted) == 1;
    found += sscanf(line, "CapEff: %" SCNx64, &out->effective) == 1;
  }
  fclose(status);
  return found == 3;
}

static int compare_rights(struct iofs_mm *mm) {
  struct rights ours, theirs;
  char process[16];
  mm_look_again(mm);
  snprintf(process, sizeof process, "%d", mm->process);
  return read_rights("self", &ours) && read_rights(process, &theirs) &&
         !memcmp(ours.uids, theirs.uids, sizeof ours.uids) &&
         !memcmp(ours.user_ns, theirs.user_ns, sizeof ours.user_ns) &&
         !(ours.effective & ~theirs.permitted);
}

/* mm->rights: when they were asked, in ns; the lowest bit: they are the same. */
static int has_our_rights(struct iofs_mm *mm, uint64_t now) {
  uint64_t known = mm->rights;
  if (!known || now - (known & ~1ull) > RIGHTS_NS)
    mm->rights = known = (now & ~1ull) | (uint64_t)compare_rights(mm);
  return (int)(known & 1);
}

/* ---- the same program ------------------------------------------------------------------------ */

static int has_secret(struct iofs_mm *mm, uint64_t now) {
  if (now - mm->secret_seen <= SECRET_NS)
    return 1;
  if (!mm_has_secret(mm, mm->process))
    return 0;
  mm->secret_seen = now;
  return 1;
}

static int may_move_at_once(struct iofs_mm *mm) {
  uint64_t now = now_ns();
  return mm->secret_at && has_our_rights(mm, now) && has_secret(mm, now);
}

/* ---- two ways -------------------------------------------------------------------------------- */

/* Up to N_SPANS spans by process_vm_*; how many bytes were moved. */
static uint64_t move_at_once(const struct iofs_mm *mm, const struct mm_span *spans, size_t n,
                             void *buf, int write) {
  struct iovec here = {buf, 0}, there[N_SPANS];
  for (size_t i = 0; i < n; i++) {
    there[i] = (struct iovec){(void *)spans[i].address, spans[i].length};
    here.iov_len += spans[i].length;
  }
  ssize_t done = write ? process_vm_writev(mm->process, &here, 1, there, n, 0)
                       : process_vm_readv(mm->process, &here, 1, there, n, 0);
  return done > 0 ? (uint64_t)done : 0;
}

static int move_by_file(const struct iofs_mm *mm, uint64_t address, unsigned char *buf,
                        uint64_t length, int write, uint64_t *done) {
  while (length) {
    if (address > INT64_MAX)
      return -EFAULT;
    ssize_t n = write ? pwrite(mm->mem_fd, buf, length, (off_t)address)
                      : pread(mm->mem_fd, buf, length, (off_t)address);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0) /* 0: the address space is no more */
      return -EFAULT;
    address += (uint64_t)n;
    buf += n;
    length -= (uint64_t)n;
    *done += (uint64_t)n;
  }
  return 0;
}

/* Some spans, of which `ready` bytes are moved already. */
static int move_rest(const struct iofs_mm *mm, const struct mm_span *spans, size_t n,
                     unsigned char *buf, int write, uint64_t ready, uint64_t *done) {
  int err = 0;
  *done += ready;
  buf += ready;
  for (size_t i = 0; i < n && !err; i++) {
    uint64_t skip = ready < spans[i].length ? ready : spans[i].length, before = *done;
    ready -= skip;
    err = move_by_file(mm, spans[i].address + skip, buf, spans[i].length - skip, write, done);
    buf += *done - before;
  }
  return err;
}

int mm_move(struct iofs_mm *mm, const struct mm_span *spans, size_t n, void *buf, int write,
            uint64_t *done) {
  uint64_t total = 0;
  *done = 0;
  for (size_t i = 0; i < n; i++)
    total += spans[i].length;
  int large = total >= LARGE || n > 1;
  for (int err; n;) {
    size_t part = n < N_SPANS ? n : N_SPANS;
    unsigned char *at = (unsigned char *)buf + *done;
    uint64_t ready = large && may_move_at_once(mm) ? move_at_once(mm, spans, part, at, write) : 0;
    if ((err = move_rest(mm, spans, part, at, write, ready, done)))
      return err;
    spans += part;
    n -= part;
  }
  return 0;
}

int mm_read(struct iofs_mm *mm, uint64_t address, void *buf, size_t length) {
  struct mm_span span = {address, length};
  uint64_t done;
  return mm_move(mm, &span, 1, buf, 0, &done);
}

int mm_write(struct iofs_mm *mm, uint64_t address, const void *buf, size_t length) {
  struct mm_span span = {address, length};
  uint64_t done;
  return mm_move(mm, &span, 1, (void *)buf, 1, &done);
}
