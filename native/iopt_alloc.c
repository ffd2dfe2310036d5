/* Choosing an IOVA: first fit, lowest address, by the kernel's own rule of alignment. */
#include <errno.h>

#include "iopt.h"

/* HPAGE_SIZE: the kernel aligns automatic IOVAs no better than to a transparent huge page. */
#define MAX_ALIGNMENT (2ull << 20)

struct wish {
  uint64_t length, alignment, offset; /* offset: of the address in its page */
};

/* Move *start up to where the wish may begin; whether it then fits into [*start, last]. A hole
 * whose last byte would be the first one is refused even for one byte, as the kernel does. */
static int fits(const struct wish *wish, uint64_t *start, uint64_t last) {
  uint64_t aligned;
  if (__builtin_add_overflow(*start, wish->alignment - 1, &aligned))
    return 0;
  aligned = (aligned & ~(wish->alignment - 1)) | wish->offset;
  if (aligned >= last || last - aligned < wish->length - 1)
    return 0;
  *start = aligned;
  return 1;
}

/* Choose inside [start, last], which no reserved range meets. */
static int choose_between_areas(const struct iofs_iopt *iopt, const struct wish *wish,
                                uint64_t start, uint64_t last, uint64_t *iova) {
  struct btree_gaps gaps;
  struct interval gap;
  btree_gaps_begin(&gaps, &iopt->areas, start, last, wish->length);
  while (btree_gaps_next(&gaps, &gap))
    if (fits(wish, &gap.start, gap.last)) {
      *iova = gap.start;
      return 1;
    }
  return 0;
}

/* Choose inside [start, last], an allowed span. */
static int choose_in_span(const struct iofs_iopt *iopt, const struct wish *wish, uint64_t start,
                          uint64_t last, uint64_t *iova) {
  if (!fits(wish, &start, last))
    return 0;
  struct itree_node *node = itree_find(&iopt->reserved, start, last);
  for (; node; node = itree_find_next(node, start, last)) {
    if (node->start > start &&
        choose_between_areas(iopt, wish, start, node->start - 1, iova))
      return 1;
    if (node->last >= last)
      return 0;
    if (node->last >= start)
      start = node->last + 1;
  }
  return choose_between_areas(iopt, wish, start, last, iova);
}

/* Extend *last over the allowed ranges that follow without a gap; the first one that does not. */
static struct itree_node *join(struct itree_node *node, uint64_t *last) {
  *last = node->last;
  while ((node = itree_next(node)) && node->start - 1 <= *last)
    if (node->last > *last)
      *last = node->last;
  return node;
}

static int choose(const struct iofs_iopt *iopt, const struct wish *wish, uint64_t *iova) {
  /* Never the first page, so that 0 is no IOVA, and never the last one. */
  const uint64_t lowest = PAGE_SIZE, highest = UINT64_MAX - PAGE_SIZE;
  struct itree_node *node = itree_find(&iopt->allowed, lowest, highest), *next;
  if (!iopt->allowed.root)
    return choose_in_span(iopt, wish, lowest, highest, iova);
  for (; node; node = next) {
    uint64_t start = node->start > lowest ? node->start : lowest, last;
    next = join(node, &last);
    if (choose_in_span(iopt, wish, start, last < highest ? last : highest, iova))
      return 1;
    if (next && next->start > highest)
      break;
  }
  return 0;
}

int iopt_choose_iova(const struct iofs_iopt *iopt, uint64_t address, uint64_t length,
                     uint64_t *iova) {
  struct wish wish = {.length = length, .offset = address % PAGE_SIZE};
  if (!length || length >= UINT64_MAX / 2)
    return -EOVERFLOW;
  wish.alignment = length == 1 ? 1 : 2ull << (63 - __builtin_clzll(length - 1));
  if (address && wish.alignment > (address & -address))
    wish.alignment = address & -address;
  if (wish.alignment > MAX_ALIGNMENT)
    wish.alignment = MAX_ALIGNMENT;
  if (wish.alignment < iopt->alignment)
    return -EINVAL;
  return choose(iopt, &wish, iova) ? 0 : -ENOSPC;
}
