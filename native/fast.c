/* What Python has published of open files, for readers (see fast.h and "fast" in serve.h). */
#include "fast.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "iopt.h"
#include "mm.h"

#define N_BUCKETS 1024 /* numbers of files are consecutive */

struct number {
  struct number *next;
  uint64_t fh;
  struct iofs_fast *fast;
};

static pthread_mutex_t numbers_lock = PTHREAD_MUTEX_INITIALIZER;
static struct number *numbers[N_BUCKETS];

/* ---- open files ------------------------------------------------------------------------------ */

struct iofs_fast *iofs_fast_new(void) {
  struct iofs_fast *fast = calloc(1, sizeof *fast);
  if (!fast)
    return NULL;
  pthread_mutex_init(&fast->lock, NULL);
  fast->refs = 1;
  return fast;
}

void fast_put(struct iofs_fast *fast) {
  if (--fast->refs)
    return;
  pthread_mutex_destroy(&fast->lock);
  free(fast->iopts);
  free(fast);
}

void iofs_fast_free(struct iofs_fast *fast) {
  for (uint32_t id = 0; id < fast->n_iopts; id++)
    iofs_fast_set_iopt(fast, id, NULL);
  iofs_fast_set_compat(fast, NULL);
  while (fast->sources)
    iofs_fast_remove_source(fast, fast->sources->tgid);
  iofs_fast_withdraw(fast);
  pthread_mutex_lock(&fast->lock);
  known_threads_forget(&fast->threads);
  pthread_mutex_unlock(&fast->lock);
  fast_put(fast);
}

int iofs_fast_add_file(struct iofs_fast *fast, uint64_t fh) {
  struct number *number = malloc(sizeof *number);
  if (!number)
    return -ENOMEM;
  fast->refs++;
  pthread_mutex_lock(&numbers_lock);
  *number = (struct number){numbers[fh % N_BUCKETS], fh, fast};
  numbers[fh % N_BUCKETS] = number;
  pthread_mutex_unlock(&numbers_lock);
  return 0;
}

void iofs_fast_remove_file(uint64_t fh) {
  pthread_mutex_lock(&numbers_lock);
  struct number **at = &numbers[fh % N_BUCKETS];
  while (*at && (*at)->fh != fh)
    at = &(*at)->next;
  struct number *number = *at;
  if (number)
    *at = number->next;
  pthread_mutex_unlock(&numbers_lock);
  if (number)
    fast_put(number->fast);
  free(number);
}

struct iofs_fast *fast_get(uint64_t fh) {
  struct iofs_fast *fast = NULL;
  pthread_mutex_lock(&numbers_lock);
  struct number *number = numbers[fh % N_BUCKETS];
  while (number && number->fh != fh)
    number = number->next;
  if (number) {
    fast = number->fast;
    fast->refs++;
  }
  pthread_mutex_unlock(&numbers_lock);
  return fast;
}

/* ---- address spaces -------------------------------------------------------------------------- */

static int make_room(struct iofs_fast *fast, uint32_t id) {
  size_t n = id + 16 + id / 2;
  if (id < fast->n_iopts)
    return 0;
  struct iofs_iopt **iopts = realloc(fast->iopts, n * sizeof *iopts);
  if (!iopts)
    return -ENOMEM;
  memset(iopts + fast->n_iopts, 0, (n - fast->n_iopts) * sizeof *iopts);
  fast->iopts = iopts;
  fast->n_iopts = n;
  return 0;
}

int iofs_fast_set_iopt(struct iofs_fast *fast, uint32_t id, struct iofs_iopt *iopt) {
  struct iofs_iopt *old = NULL;
  pthread_mutex_lock(&fast->lock);
  int err = iopt ? make_room(fast, id) : 0;
  if (!err && id < fast->n_iopts) {
    old = fast->iopts[id];
    fast->iopts[id] = iopt;
    if (iopt)
      iopt_get(iopt);
  }
  pthread_mutex_unlock(&fast->lock);
  if (old)
    iopt_put(old);
  return err;
}

void iofs_fast_set_compat(struct iofs_fast *fast, struct iofs_iopt *iopt) {
  pthread_mutex_lock(&fast->lock);
  struct iofs_iopt *old = fast->compat;
  if ((fast->compat = iopt))
    iopt_get(iopt);
  pthread_mutex_unlock(&fast->lock);
  if (old)
    iopt_put(old);
}

struct iofs_iopt *fast_get_iopt(struct iofs_fast *fast, uint32_t id) {
  pthread_mutex_lock(&fast->lock);
  struct iofs_iopt *iopt = id < fast->n_iopts ? fast->iopts[id] : NULL;
  if (iopt)
    iopt_get(iopt);
  pthread_mutex_unlock(&fast->lock);
  return iopt;
}

struct iofs_iopt *fast_get_compat(struct iofs_fast *fast) {
  pthread_mutex_lock(&fast->lock);
  struct iofs_iopt *iopt = fast->compat;
  if (iopt)
    iopt_get(iopt);
  pthread_mutex_unlock(&fast->lock);
  return iopt;
}

/* ---- whose memory it is ---------------------------------------------------------------------- */

void iofs_fast_set_charge_mode(struct iofs_fast *fast, uint32_t mode) {
  pthread_mutex_lock(&fast->lock);
  fast->charge_mode = mode;
  pthread_mutex_unlock(&fast->lock);
}

static struct fast_source **find_source(struct iofs_fast *fast, int tgid) {
  struct fast_source **at = &fast->sources;
  while (*at && (*at)->tgid != tgid)
    at = &(*at)->next;
  return at;
}

int iofs_fast_add_source(struct iofs_fast *fast, int tgid, struct iofs_mm *mm) {
  struct fast_source *source = malloc(sizeof *source);
  if (!source)
    return -ENOMEM;
  iofs_mm_get(mm);
  pthread_mutex_lock(&fast->lock);
  assert(!*find_source(fast, tgid));
  *source = (struct fast_source){fast->sources, tgid, mm};
  fast->sources = source;
  pthread_mutex_unlock(&fast->lock);
  return 0;
}

void iofs_fast_remove_source(struct iofs_fast *fast, int tgid) {
  pthread_mutex_lock(&fast->lock);
  struct fast_source **at = find_source(fast, tgid), *source = *at;
  if (source)
    *at = source->next;
  pthread_mutex_unlock(&fast->lock);
  if (source)
    iofs_mm_put(source->mm);
  free(source);
}

uint64_t fast_secret_at(uint64_t fh, int tid) {
  struct iofs_fast *fast = fast_get(fh);
  uint64_t address = 0;
  if (!fast)
    return 0;
  pthread_mutex_lock(&fast->lock);
  int tgid = known_thread_tgid(&fast->threads, tid);
  struct fast_source *source = tgid ? *find_source(fast, tgid) : NULL;
  if (source)
    address = iofs_mm_secret_at(source->mm);
  pthread_mutex_unlock(&fast->lock);
  fast_put(fast);
  return address;
}

/* Whether the process has not called exec since: its old memory may be in use all the same, by
 * others that share it. */
static int runs_still(struct iofs_mm *mm, const struct iofs_ioctl *ioctl,
                      const struct thread_identity *who) {
  if (who->is_new)
    return iofs_mm_has(mm, who->tgid) && mm_has_secret(mm, ioctl->tid);
  return ioctl->secret_at == mm->secret_at ? mm_is_secret(mm, ioctl->secret)
                                           : mm_has_secret(mm, ioctl->tid);
}

struct iofs_mm *fast_get_source(struct iofs_fast *fast, const struct iofs_ioctl *ioctl,
                                struct iofs_charge *charge) {
  struct thread_identity who;
  struct iofs_mm *mm = NULL;
  pthread_mutex_lock(&fast->lock);
  if (fast->sources && !thread_identify(&fast->threads, ioctl->tid, &who)) {
    struct fast_source *source = *find_source(fast, who.tgid);
    *charge = (struct iofs_charge){fast->charge_mode, who.uid, who.tgid};
    if (who.may_lock)
      charge->mode = IOFS_CHARGE_NONE;
    if (source)
      iofs_mm_get(mm = source->mm);
  }
  pthread_mutex_unlock(&fast->lock);
  if (mm && !runs_still(mm, ioctl, &who)) {
    iofs_mm_put(mm);
    return NULL;
  }
  return mm;
}

/* ---- devices --------------------------------------------------------------------------------- */

int iofs_fast_add_answer(struct iofs_fast *fast, uint32_t cmd, uint32_t index, const void *bytes,
                         uint32_t length, const void *chain, uint32_t chain_length,
                         uint32_t cap_at) {
  struct fast_answer *answer = malloc(sizeof *answer + length + chain_length);
  if (!answer)
    return -ENOMEM;
  *answer = (struct fast_answer){NULL, cmd, index, cap_at, length, chain_length};
  memcpy(answer->bytes, bytes, length);
  memcpy(answer->bytes + length, chain, chain_length);
  pthread_mutex_lock(&fast->lock);
  struct fast_answer **at = &fast->answers, *old;
  while (*at && ((*at)->cmd != cmd || (*at)->index != index))
    at = &(*at)->next;
  old = *at;
  answer->next = old ? old->next : NULL;
  *at = answer;
  pthread_mutex_unlock(&fast->lock);
  free(old);
  return 0;
}

int iofs_fast_set_triggers(struct iofs_fast *fast, uint32_t index, const int32_t *fds, uint32_t n) {
  int32_t *copy = n ? malloc(n * sizeof *copy) : NULL;
  if (n && copy)
    memcpy(copy, fds, n * sizeof *copy);
  pthread_mutex_lock(&fast->lock);
  free(fast->triggers[index].fds);
  fast->triggers[index].fds = copy;
  fast->triggers[index].n = copy ? n : 0;
  pthread_mutex_unlock(&fast->lock);
  return n && !copy ? -ENOMEM : 0;
}

int iofs_fast_add_window(struct iofs_fast *fast, uint64_t position, uint64_t length,
                         uint32_t flags, const void *own, const void *kept, const void *mask) {
  struct fast_window *window = malloc(sizeof *window), **at;
  if (!window)
    return -ENOMEM;
  assert(!(((uintptr_t)own | (uintptr_t)kept | (uintptr_t)mask | position) % 8));
  pthread_mutex_lock(&fast->lock);
  for (at = &fast->windows; *at && (*at)->position != position;)
    at = &(*at)->next;
  struct fast_window *old = *at;
  *window = (struct fast_window){old ? old->next : NULL, position, length, flags, own, kept, mask};
  *at = window;
  pthread_mutex_unlock(&fast->lock);
  free(old);
  return 0;
}

void iofs_fast_set_memory(struct iofs_fast *fast, int enabled) {
  pthread_mutex_lock(&fast->lock);
  fast->memory_enabled = enabled;
  pthread_mutex_unlock(&fast->lock);
}

void iofs_fast_withdraw(struct iofs_fast *fast) {
  pthread_mutex_lock(&fast->lock);
  while (fast->windows) {
    struct fast_window *window = fast->windows;
    fast->windows = window->next;
    free(window);
  }
  fast->memory_enabled = 0;
  while (fast->answers) {
    struct fast_answer *answer = fast->answers;
    fast->answers = answer->next;
    free(answer);
  }
  pthread_mutex_unlock(&fast->lock);
  for (uint32_t index = 0; index < FAST_N_IRQ_INDEXES; index++)
    iofs_fast_set_triggers(fast, index, NULL, 0);
}
