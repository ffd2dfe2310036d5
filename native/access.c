/*
 * Accesses: how a device without an IOMMU reaches the memory of an IOAS. Pins hold an area against
 * unmapping until whoever made them lets go; rw leaves no pin behind.
 *
 * An access has a lock of its own, taken before that of the iopt, so that it can be detached while
 * another thread moves bytes through it.
 */
#include <assert.h>
#include <errno.h>

#include "alloc.h"
#include "copy.h"
#include "iopt.h"
#include "stats.h"

struct iofs_access {
  _Atomic uint32_t refs;
  pthread_mutex_t lock;
  struct iofs_iopt *iopt; /* NULL: detached; under our lock */
  /* The rest is under the lock of the iopt. */
  struct iofs_access *next;
  struct itree pins; /* by IOVA */
  int needs_pin_pages, internal;
};

struct access_pin {
  struct itree_node node;
  uint64_t users;
};

int iofs_access_new(int needs_pin_pages, int internal, struct iofs_access **out) {
  struct iofs_access *access = alloc_zeroed(sizeof *access);
  if (!access)
    return -ENOMEM;
  access->refs = 1;
  pthread_mutex_init(&access->lock, NULL);
  access->pins.kind = ITREE_OVERLAP;
  access->needs_pin_pages = needs_pin_pages;
  access->internal = internal;
  stats.accesses++;
  *out = access;
  return 0;
}

void iofs_access_get(struct iofs_access *access) { access->refs++; }

void iofs_access_put(struct iofs_access *access) {
  if (--access->refs)
    return;
  assert(!access->iopt);
  pthread_mutex_destroy(&access->lock);
  alloc_free(access);
  stats.accesses--;
}

uint64_t access_alignment(const struct iofs_access *access) {
  return access->needs_pin_pages || access->internal ? PAGE_SIZE : 1;
}

const struct iofs_access *access_next(const struct iofs_access *access) { return access->next; }

int iofs_access_attach(struct iofs_access *access, struct iofs_iopt *iopt) {
  int err = -EINVAL;
  pthread_mutex_lock(&access->lock);
  if (!access->iopt) {
    pthread_mutex_lock(&iopt->lock);
    if (!(err = iopt_check_alignment(iopt, access_alignment(access)))) {
      access->iopt = iopt;
      access->next = iopt->accesses;
      iopt->accesses = access;
      iopt_update_alignment(iopt);
    }
    pthread_mutex_unlock(&iopt->lock);
  }
  pthread_mutex_unlock(&access->lock);
  return err;
}

static int detach(struct iofs_access *access, struct iofs_iopt *iopt) {
  struct iofs_access **link = &iopt->accesses;
  if (access->pins.root)
    return -EBUSY;
  while (*link != access)
    link = &(*link)->next;
  *link = access->next;
  access->iopt = NULL;
  iopt_update_alignment(iopt);
  return 0;
}

int iofs_access_detach(struct iofs_access *access) {
  int err = 0;
  pthread_mutex_lock(&access->lock);
  struct iofs_iopt *iopt = access->iopt;
  if (iopt) {
    pthread_mutex_lock(&iopt->lock);
    err = detach(access, iopt);
    pthread_mutex_unlock(&iopt->lock);
  }
  pthread_mutex_unlock(&access->lock);
  return err;
}

/* Both locks, or ENOENT of a detached access. */
static int lock(struct iofs_access *access) {
  pthread_mutex_lock(&access->lock);
  if (access->iopt) {
    pthread_mutex_lock(&access->iopt->lock);
    return 0;
  }
  pthread_mutex_unlock(&access->lock);
  return -ENOENT;
}

static void unlock(struct iofs_access *access) {
  pthread_mutex_unlock(&access->iopt->lock);
  pthread_mutex_unlock(&access->lock);
}

static struct area *area_at(const struct iofs_access *access, uint64_t iova) {
  return find_area(access->iopt, iova, iova);
}

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* ---- pins ------------------------------------------------------------------------------------ */

/* iommufd_access_pin_pages(): what holds for each area. [iova, last] is the rest of the request. */
static int check_pin(const struct area *area, uint64_t iova, uint64_t last, uint32_t prot) {
  uint64_t end_byte = area_byte(area, area->iova.last);
  if (area->prevent_access || area_byte(area, iova) % PAGE_SIZE ||
      (area->iova.last < last && end_byte % PAGE_SIZE != PAGE_SIZE - 1))
    return -EINVAL;
  if (!(area->prot & (prot & IOFS_WRITE ? IOFS_WRITE : IOFS_READ)) ||
      (prot & IOFS_WRITE && !area->pages->writable))
    return -EPERM;
  return area->pages->kind == PAGES_DMABUF ? -EINVAL : 0;
}

static void unpin_range(const struct iofs_access *access, uint64_t iova, uint64_t last) {
  struct area *area = find_area(access->iopt, iova, last);
  for (; area; area = find_next_area(access->iopt, area, last)) {
    uint64_t from = iova > area->iova.start ? iova : area->iova.start;
    pages_unpin(area->pages, area_byte(area, from) >> PAGE_LG2,
                area_byte(area, min_u64(last, area->iova.last)) >> PAGE_LG2);
    area->n_accesses--;
    area->n_locks -= (unsigned)!!access->internal;
  }
}

static int pin_range(const struct iofs_access *access, uint64_t iova, uint64_t last,
                     uint32_t prot) {
  uint64_t at = iova;
  for (;;) {
    struct area *area = area_at(access, at);
    int err = area ? check_pin(area, at, last, prot) : -ENOENT;
    uint64_t end = area ? min_u64(last, area->iova.last) : at;
    if (!err)
      err = pages_pin(area->pages, area_byte(area, at) >> PAGE_LG2,
                      area_byte(area, end) >> PAGE_LG2);
    if (err) {
      if (at != iova)
        unpin_range(access, iova, at - 1);
      return err;
    }
    area->n_accesses++;
    area->n_locks += (unsigned)!!access->internal;
    if (end == last)
      return 0;
    at = end + 1;
  }
}

static struct access_pin *find_pin(const struct iofs_access *access, uint64_t iova, uint64_t last) {
  struct itree_node *node = itree_find(&access->pins, iova, last);
  while (node && (node->start != iova || node->last != last))
    node = itree_find_next(node, iova, last);
  return node ? ITREE_OF(node, struct access_pin, node) : NULL;
}

static int pin(struct iofs_access *access, uint64_t iova, uint64_t last, uint32_t prot) {
  struct access_pin *known = find_pin(access, iova, last), *pin = known;
  if (!pin && !(pin = alloc_zeroed(sizeof *pin)))
    return -ENOMEM;
  int err = pin_range(access, iova, last, prot);
  if (err) {
    if (!known)
      alloc_free(pin);
    return err;
  }
  pin->users++;
  if (!known) {
    pin->node.start = iova;
    pin->node.last = last;
    itree_insert(&access->pins, &pin->node);
  }
  return 0;
}

static int check_range(uint64_t iova, uint64_t length, uint64_t *last) {
  if (!length)
    return -EINVAL;
  return __builtin_add_overflow(iova, length - 1, last) ? -EOVERFLOW : 0;
}

int iofs_access_pin(struct iofs_access *access, uint64_t iova, uint64_t length, uint32_t prot) {
  uint64_t last;
  int err = check_range(iova, length, &last);
  if (err || (err = lock(access)))
    return err;
  err = pin(access, iova, last, prot);
  unlock(access);
  return err;
}

static int unpin(struct iofs_access *access, uint64_t iova, uint64_t last) {
  struct access_pin *pin = find_pin(access, iova, last);
  if (!pin)
    return -EINVAL;
  unpin_range(access, iova, last);
  if (!--pin->users) {
    itree_erase(&access->pins, &pin->node);
    alloc_free(pin);
  }
  return 0;
}

int iofs_access_unpin(struct iofs_access *access, uint64_t iova, uint64_t length) {
  uint64_t last;
  int err = check_range(iova, length, &last);
  if (err || (err = lock(access)))
    return err;
  err = unpin(access, iova, last);
  unlock(access);
  return err;
}

int access_identify(struct iofs_access *access, uint64_t iova, struct page_id *out) {
  int err = lock(access);
  if (err)
    return err;
  const struct area *area = area_at(access, iova);
  err = area ? pages_identify(area->pages, area_byte(area, iova), out) : -ENOENT;
  unlock(access);
  return err;
}

/* ---- rw -------------------------------------------------------------------------------------- */

/* Find the memory of as much of [iova, last] as lies in one area; *length: how much. */
static int collect(struct iofs_access *access, uint64_t iova, uint64_t last, int write,
                   struct copy_list *list, uint64_t *length) {
  const struct area *area = area_at(access, iova);
  if (!area)
    return -ENOENT;
  if (area->prevent_access)
    return -EINVAL;
  if (!(area->prot & (write ? IOFS_WRITE : IOFS_READ)) || (write && !area->pages->writable))
    return -EPERM;
  if (area->pages->kind == PAGES_DMABUF)
    return -EINVAL;
  *length = min_u64(last, area->iova.last) - iova + 1;
  return pages_collect(area->pages, area_byte(area, iova), *length, list);
}

int iofs_access_rw(struct iofs_access *access, uint64_t iova, void *buf, size_t length,
                   int write) {
  uint64_t last, part = 0, done;
  int err = check_range(iova, length, &last);
  for (uint64_t moved = 0; !err && moved < length; moved += part) {
    struct copy_list list;
    if ((err = lock(access)))
      break;
    copy_list_init(&list);
    err = collect(access, iova + moved, last, write, &list, &part);
    unlock(access);
    if (!err)
      err = copy_list_move(&list, (unsigned char *)buf + moved, write, &done);
    copy_list_free(&list);
  }
  return err;
}
