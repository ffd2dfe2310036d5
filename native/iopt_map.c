/* Mapping and copying: areas come into being, all pieces of a call or none. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "alloc.h"
#include "iopt.h"
#include "stats.h"

/* Where a map or a copy goes. */
struct target {
  uint64_t address; /* of the first byte in its source: what an automatic IOVA is aligned to */
  uint64_t length;
  uint32_t prot;
  int fixed;
};

/* iopt_alloc_area_pages(): rules 7 to 9 of a map. *iova is in and out. */
static int place(struct iofs_iopt *iopt, const struct target *target, uint64_t *iova) {
  uint64_t mask = iopt->alignment - 1, last;
  if (target->length & mask)
    return -EINVAL;
  if (!target->fixed)
    return iopt_choose_iova(iopt, target->address, target->length, iova);
  if (*iova & mask)
    return -EINVAL;
  if (__builtin_add_overflow(*iova, target->length - 1, &last))
    return -EOVERFLOW;
  if (itree_find(&iopt->reserved, *iova, last))
    return -EINVAL;
  return btree_seek(&iopt->areas, *iova, last) ? -EEXIST : 0;
}

struct area *area_new(struct pages *pages) {
  /* With one reference, the caller's, nobody else can reach the place for an area. */
  int is_free = pages->refs == 1 && !pages->area.pages;
  struct area *area = is_free ? &pages->area : alloc_zeroed(sizeof *area);
  if (!area)
    return NULL;
  *area = (struct area){.pages = pages};
  pages_get(pages);
  return area;
}

void area_free(struct area *area) {
  struct pages *pages = area->pages;
  if (area == &pages->area)
    area->pages = NULL;
  else
    alloc_free(area);
  pages_put(pages);
}

/* iopt_insert_area() */
static int insert(struct iofs_iopt *iopt, const struct piece *piece, uint64_t iova, uint32_t prot) {
  struct area *area;
  if (prot & IOFS_WRITE && !piece->pages->writable)
    return -EPERM;
  if (piece->start_byte % PAGE_SIZE & (iopt->alignment - 1))
    return -EINVAL;
  if (!(area = area_new(piece->pages)))
    return -ENOMEM;
  area->iova.start = iova;
  area->iova.last = iova + piece->length - 1;
  area->start_byte = piece->start_byte;
  area->prot = prot & (IOFS_READ | IOFS_WRITE);
  int err = btree_insert(&iopt->areas, &area->iova);
  if (err) {
    area_free(area);
    return err;
  }
  iopt->n_areas++;
  stats.areas++;
  return 0;
}

/* The areas at [iova, iova + length), which pieces of one call made, leave again. */
static void remove_pieces(struct iofs_iopt *iopt, uint64_t iova, uint64_t length) {
  struct area *area;
  while (length && (area = find_area(iopt, iova, iova + length - 1)))
    iopt_remove_area(iopt, area);
}

/* All areas are there before the first is filled, as iopt_map_pages() has it. */
static int insert_pieces(struct iofs_iopt *iopt, const struct piece *pieces, size_t n,
                         const struct target *target, uint64_t iova) {
  uint64_t done = 0;
  int err = 0;
  for (size_t i = 0; i < n && !err; i++) {
    err = insert(iopt, &pieces[i], iova + done, target->prot);
    if (!err)
      done += pieces[i].length;
  }
  struct area *area = err ? NULL : find_area(iopt, iova, iova + done - 1);
  for (; area && !err; area = find_next_area(iopt, area, iova + done - 1))
    err = iopt_fill_area(iopt, area);
  if (err)
    remove_pieces(iopt, iova, done);
  return err;
}

static int map(struct iofs_iopt *iopt, const struct piece *pieces, size_t n,
               const struct target *target, uint64_t *iova) {
  uint64_t at = *iova;
  pthread_mutex_lock(&iopt->lock);
  int err = place(iopt, target, &at);
  if (!err)
    err = insert_pieces(iopt, pieces, n, target, at);
  pthread_mutex_unlock(&iopt->lock);
  if (!err)
    *iova = at;
  return err;
}

static int map_new_pages(struct iofs_iopt *iopt, struct pages *pages, uint64_t address,
                         uint64_t length, uint32_t prot, int fixed, uint64_t *iova) {
  struct piece piece = {pages, address % PAGE_SIZE, length};
  struct target target = {address, length, prot, fixed};
  int err = map(iopt, &piece, 1, &target, iova);
  pages_put(pages); /* the area has its own */
  return err;
}

int iofs_iopt_map_user(struct iofs_iopt *iopt, struct iofs_mm *mm, const struct iofs_charge *charge,
                       uint64_t user_va, uint64_t length, uint32_t prot, int fixed,
                       uint64_t *iova) {
  struct pages *pages;
  uint64_t end;
  if (__builtin_add_overflow(user_va, length, &end))
    return -EOVERFLOW;
  if (!length || length > UINT64_MAX - PAGE_SIZE)
    return -EINVAL;
  int err = pages_new_user(mm, charge, user_va, length, !!(prot & IOFS_WRITE), &pages);
  return err ? err : map_new_pages(iopt, pages, user_va, length, prot, fixed, iova);
}

int iofs_iopt_map_file(struct iofs_iopt *iopt, struct iofs_mm *mm, const struct iofs_charge *charge,
                       int fd, uint64_t start, uint64_t length, uint32_t prot, int fixed,
                       uint64_t *iova) {
  struct pages *pages;
  uint64_t last;
  if (!length)
    return -EINVAL;
  if (__builtin_add_overflow(start, length - 1, &last))
    return -EOVERFLOW;
  if (fcntl(fd, F_GETFD) < 0)
    return -EBADF;
  int err = pages_new_file(mm, charge, fd, start, length, !!(prot & IOFS_WRITE), &pages);
  return err ? err : map_new_pages(iopt, pages, start, length, prot, fixed, iova);
}

int iofs_iopt_map_dmabuf(struct iofs_iopt *iopt, struct iofs_mm *mm, int fd, uint64_t name,
                         uint64_t start, uint64_t length, uint32_t prot, int fixed,
                         uint64_t *iova) {
  static const struct iofs_charge nobody = {IOFS_CHARGE_NONE, 0, 0};
  struct pages *pages;
  uint64_t end;
  if (!length)
    return -EINVAL;
  if (__builtin_add_overflow(start, length, &end))
    return -EOVERFLOW;
  int err = pages_new_file(mm, &nobody, fd, start, length, !!(prot & IOFS_WRITE), &pages);
  if (err)
    return err;
  if (!pages->file || end > memfile_size(pages->file)) {
    pages_put(pages);
    return -EINVAL;
  }
  pages->kind = PAGES_DMABUF;
  pages->dmabuf = name;
  return map_new_pages(iopt, pages, start, length, prot, fixed, iova);
}

/* ---- copy ------------------------------------------------------------------------------------ */

/* How many areas, from the one at `iova` on, cover [iova, last] without a hole; 0: they do not. */
static size_t count_contiguous(const struct iofs_iopt *iopt, const struct area *area,
                               uint64_t last) {
  size_t n = 1;
  for (; area && area->iova.last < last; n++)
    area = find_area(iopt, area->iova.last + 1, area->iova.last + 1);
  return area ? n : 0;
}

/* Under the lock of the iopt. */
static int get_pieces(const struct iofs_iopt *iopt, uint64_t iova, uint64_t last,
                      struct iofs_piece_list **out) {
  const struct area *area = find_area(iopt, iova, iova);
  size_t n = count_contiguous(iopt, area, last);
  struct iofs_piece_list *list;
  if (!n)
    return -ENOENT;
  if (!(list = alloc_zeroed(sizeof *list + n * sizeof *list->pieces)))
    return -ENOMEM;
  for (list->n = 0;;) {
    uint64_t end = area->iova.last < last ? area->iova.last : last;
    list->pieces[list->n] = (struct piece){area->pages, area_byte(area, iova), end - iova + 1};
    pages_get(area->pages);
    if (++list->n == n)
      break;
    iova = end + 1;
    area = find_area(iopt, iova, iova);
  }
  *out = list;
  return 0;
}

int iofs_iopt_get_pieces(struct iofs_iopt *iopt, uint64_t iova, uint64_t length,
                         struct iofs_piece_list **out) {
  uint64_t last;
  if (!length)
    return -EINVAL;
  if (__builtin_add_overflow(iova, length - 1, &last))
    return -EOVERFLOW;
  pthread_mutex_lock(&iopt->lock);
  int err = get_pieces(iopt, iova, last, out);
  pthread_mutex_unlock(&iopt->lock);
  return err;
}

int iofs_iopt_map_pieces(struct iofs_iopt *iopt, const struct iofs_piece_list *list, uint32_t prot,
                         int fixed, uint64_t *iova) {
  const struct piece *first = list->pieces;
  struct target target = {first->pages->base + first->start_byte, 0, prot, fixed};
  for (size_t i = 0; i < list->n; i++)
    target.length += list->pieces[i].length;
  return map(iopt, list->pieces, list->n, &target, iova);
}

void iofs_piece_list_free(struct iofs_piece_list *list) {
  for (size_t i = 0; i < list->n; i++)
    pages_put(list->pieces[i].pages);
  alloc_free(list);
}
