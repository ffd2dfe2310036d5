/* Moving mappings to another process: who owns them, and who pays. */
#include <errno.h>

#include "charge.h"
#include "iopt.h"

struct move {
  struct iofs_iopt *const *iopts;
  size_t n;
  struct iofs_mm *mm;
  struct iofs_charge charge; /* to whom; its mode is that of each pages object in turn */
};

typedef int visit_fn(const struct move *move, struct pages *pages, void *arg);

/* Pages that several areas show are visited several times. */
static int for_each_pages(const struct move *move, visit_fn *visit, void *arg) {
  int err = 0;
  for (size_t i = 0; i < move->n; i++) {
    const struct iofs_iopt *iopt = move->iopts[i];
    for (struct area *area = first_area(iopt); area && !err; area = next_area(iopt, area))
      err = visit(move, area->pages, arg);
  }
  return err;
}

static int check_file(const struct move *move, struct pages *pages, void *arg) {
  (void)move, (void)arg;
  return pages->kind == PAGES_USER ? -EINVAL : 0;
}

/* need_charge_update(): another process of the same user pays anew, as RLIMIT_MEMLOCK is its own. */
static int is_charged_elsewhere(const struct move *move, const struct pages *pages) {
  switch (pages->charge_mode) {
  case IOFS_CHARGE_USER:
    return pages->uid != move->charge.uid || pages->mm != move->mm;
  case IOFS_CHARGE_MM:
    return pages->mm != move->mm;
  default:
    return 0;
  }
}

/* Add what is to be charged to totals[mode], and mark the pages that are in it. */
static int count(const struct move *move, struct pages *pages, void *arg) {
  uint64_t *totals = arg;
  if (!pages->marked && is_charged_elsewhere(move, pages)) {
    pages->marked = 1;
    totals[pages->charge_mode] += pages_n_pinned(pages);
  }
  return 0;
}

static int unmark(const struct move *move, struct pages *pages, void *arg) {
  (void)move, (void)arg;
  pages->marked = 0;
  return 0;
}

static int charge_totals(const struct move *move, const uint64_t *totals) {
  struct iofs_charge user = move->charge, mm = move->charge;
  user.mode = IOFS_CHARGE_USER;
  mm.mode = IOFS_CHARGE_MM;
  int err = charge_add(&user, move->mm, totals[IOFS_CHARGE_USER]);
  if (err)
    return err;
  if ((err = charge_add(&mm, move->mm, totals[IOFS_CHARGE_MM])))
    charge_remove(&user, move->mm, totals[IOFS_CHARGE_USER]);
  return err;
}

/* What was charged before is given back only now, so for a moment both pay, as in Linux. */
static int change(const struct move *move, struct pages *pages, void *arg) {
  int *is_gone = arg;
  if (pages->marked) {
    struct iofs_charge old = {pages->charge_mode, pages->uid, pages->tgid};
    if (old.mode == IOFS_CHARGE_MM && !iofs_mm_alive(pages->mm))
      *is_gone = 1;
    charge_remove(&old, pages->mm, pages_n_pinned(pages));
    pages->marked = 0;
  }
  if (pages->mm != move->mm || pages->uid != move->charge.uid)
    pages_set_process(pages, move->mm, &move->charge);
  return 0;
}

/* Under the locks of all iopts, so nothing is pinned or unpinned. */
static int change_process(const struct move *move) {
  uint64_t totals[IOFS_CHARGE_MM + 1] = {0};
  int is_gone = 0, err = for_each_pages(move, check_file, NULL);
  if (err)
    return err;
  for_each_pages(move, count, totals);
  if ((err = charge_totals(move, totals))) {
    for_each_pages(move, unmark, NULL);
    return err;
  }
  for_each_pages(move, change, &is_gone);
  return is_gone ? -ESRCH : 0;
}

int iofs_iopts_change_process(struct iofs_iopt *const *iopts, size_t n, struct iofs_mm *mm,
                              const struct iofs_charge *charge) {
  struct move move = {iopts, n, mm, *charge};
  for (size_t i = 0; i < n; i++)
    pthread_mutex_lock(&iopts[i]->lock);
  int err = change_process(&move);
  for (size_t i = n; i--;)
    pthread_mutex_unlock(&iopts[i]->lock);
  return err;
}
