/* Locked-memory accounting (see charge.h). */
#define _GNU_SOURCE
#include "charge.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "alloc.h"
#include "mm.h"
#include "stats.h"

struct user {
  struct user *next;
  uint32_t uid;
  uint64_t locked; /* pages, never 0 */
};

#define N_BUCKETS 64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct user *buckets[N_BUCKETS];

static struct user **find_user(uint32_t uid) {
  struct user **link = &buckets[uid % N_BUCKETS];
  while (*link && (*link)->uid != uid)
    link = &(*link)->next;
  return link;
}

/* Anybody's limit, in bytes: prlimit() takes CAP_SYS_RESOURCE for another user's, which the root of
 * a container may lack; the text does not. 0: *limit is written. */
static int read_limit(int tgid, uint64_t *limit) {
  char path[64], line[256], soft[32];
  snprintf(path, sizeof path, "/proc/%d/limits", tgid);
  FILE *file = fopen(path, "re");
  int found = 0;
  while (file && !found && fgets(line, sizeof line, file))
    found = sscanf(line, "Max locked memory %31s", soft) == 1;
  if (file)
    fclose(file);
  if (!found)
    return -ESRCH;
  *limit = strcmp(soft, "unlimited") ? strtoull(soft, NULL, 10) : RLIM_INFINITY;
  return 0;
}

/* Where the limit of a process is kept: several may share the memory, each with its own. */
static uint64_t *kept_limit(struct iofs_mm *mm, int tgid) {
  unsigned n = mm->n_limits < MAX_USERS ? mm->n_limits : MAX_USERS;
  for (unsigned i = 0; i < n; i++)
    if (mm->limits[i].tgid == tgid)
      return &mm->limits[i].bytes;
  n = mm->n_limits++ % MAX_USERS;
  mm->limits[n].tgid = tgid;
  mm->limits[n].bytes = 0;
  return &mm->limits[n].bytes;
}

/* In pages. A process that has ended keeps its last limit, as its mappings outlive it. */
static uint64_t limit_of(const struct iofs_charge *charge, struct iofs_mm *mm) {
  uint64_t *kept = kept_limit(mm, charge->tgid);
  struct rlimit limit;
  if (!prlimit(charge->tgid, RLIMIT_MEMLOCK, NULL, &limit))
    *kept = limit.rlim_cur;
  else if (errno == EPERM)
    read_limit(charge->tgid, kept);
  return *kept >> PAGE_LG2;
}

void charge_note_limit(const struct iofs_charge *charge, struct iofs_mm *mm) {
  if (charge->mode == IOFS_CHARGE_NONE)
    return;
  pthread_mutex_lock(&lock);
  limit_of(charge, mm);
  pthread_mutex_unlock(&lock);
}

static int add(uint64_t *locked, uint64_t n_pages, uint64_t limit) {
  if (*locked + n_pages < n_pages || *locked + n_pages > limit)
    return -ENOMEM;
  *locked += n_pages;
  return 0;
}

/* Under the lock. */
static int add_to_user(uint32_t uid, uint64_t n_pages, uint64_t limit) {
  struct user **link = find_user(uid), *user = *link;
  if (user)
    return add(&user->locked, n_pages, limit);
  if (n_pages > limit || !(user = alloc_zeroed(sizeof *user)))
    return -ENOMEM;
  user->uid = uid;
  user->locked = n_pages;
  *link = user;
  stats.users++;
  return 0;
}

int charge_add(const struct iofs_charge *charge, struct iofs_mm *mm, uint64_t n_pages) {
  int err = 0;
  if (!n_pages || charge->mode == IOFS_CHARGE_NONE)
    return 0;
  pthread_mutex_lock(&lock);
  uint64_t limit = limit_of(charge, mm);
  if (charge->mode == IOFS_CHARGE_MM)
    err = add(&mm->locked, n_pages, limit);
  else
    err = add_to_user(charge->uid, n_pages, limit);
  pthread_mutex_unlock(&lock);
  return err;
}

void charge_remove(const struct iofs_charge *charge, struct iofs_mm *mm, uint64_t n_pages) {
  if (!n_pages || charge->mode == IOFS_CHARGE_NONE)
    return;
  pthread_mutex_lock(&lock);
  if (charge->mode == IOFS_CHARGE_MM)
    mm->locked -= n_pages;
  else {
    struct user **link = find_user(charge->uid), *user = *link;
    assert(user && user->locked >= n_pages);
    if (!(user->locked -= n_pages)) {
      *link = user->next;
      alloc_free(user);
      stats.users--;
    }
  }
  pthread_mutex_unlock(&lock);
}

uint64_t charge_of_user(uint32_t uid) {
  pthread_mutex_lock(&lock);
  struct user *user = *find_user(uid);
  uint64_t locked = user ? user->locked : 0;
  pthread_mutex_unlock(&lock);
  return locked;
}
