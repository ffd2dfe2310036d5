/*
 * Pages objects: one contiguous source of memory, shared by every area that was copied from the
 * first one. Inside, a page is known by its index, 0 … n_pages - 1, and a byte by its distance
 * from the beginning of page 0.
 *
 * A page is pinned while at least one interval that somebody pinned covers it: its source is then
 * known, held and paid for. Emulated physical memory: while a pages object is placed, its bytes
 * have consecutive physical addresses.
 */
#ifndef IOFS_PAGES_H
#define IOFS_PAGES_H

#include "area.h"
#include "copy.h"
#include "iommufs.h"
#include "mm.h"

enum pages_kind {
  PAGES_USER,
  PAGES_FILE,
  PAGES_OTHER_FILE, /* a file that is not memory: pinning it is EINVAL */
  PAGES_DMABUF,     /* a device's memory, as a file; it may withdraw it */
};

struct pins;

struct pages {
  /* A place for an area that shows them: as a rule it is the only one, and who finds it has both in
   * his cache. See area_new(). */
  struct area area;
  _Atomic uint32_t refs;
  uint8_t kind; /* enum pages_kind */
  uint8_t writable;
  uint8_t charge_mode;
  uint8_t revoked;      /* PAGES_DMABUF: no device reaches it any more */
  uint8_t marked; /* of iofs_iopts_change_process() */
  struct iofs_mm *mm;
  struct memfile *file; /* PAGES_FILE, PAGES_DMABUF */
  uint64_t dmabuf;      /* which one, see iofs_iopt_revoke() */
  uint64_t base;        /* of page 0: address in the client, or offset in the file */
  uint64_t n_pages;
  uint32_t uid;  /* whom to charge, see struct iofs_charge */
  int32_t tgid;
  struct pins *pins; /* NULL: nothing is pinned */
};

/* The source [start, start + length), length > 0; *start_byte: where it begins in page 0. */
int pages_new_user(struct iofs_mm *mm, const struct iofs_charge *charge, uint64_t start,
                   uint64_t length, int writable, struct pages **out);
int pages_new_file(struct iofs_mm *mm, const struct iofs_charge *charge, int fd, uint64_t start,
                   uint64_t length, int writable, struct pages **out);
void pages_get(struct pages *pages);
void pages_put(struct pages *pages);

/* Pin the pages [first, last], all or none: EFAULT, EINVAL (file), ENOMEM. Unpin names an interval
 * that was pinned, or a part of one that pages_divide() made. */
int pages_pin(struct pages *pages, uint64_t first, uint64_t last);
void pages_unpin(struct pages *pages, uint64_t first, uint64_t last);

/* Pages pinned now: what is charged. */
uint64_t pages_n_pinned(const struct pages *pages);

/* From now on the process and its user are charged; moving what is charged already is the
 * caller's, who lets nobody pin or unpin meanwhile. The mode stays. */
void pages_set_process(struct pages *pages, struct iofs_mm *mm, const struct iofs_charge *charge);

/* Let every pinned interval that reaches over the border between index - 1 and index be two. */
int pages_divide(struct pages *pages, uint64_t index);

/* Give pinned pages their physical addresses, so that leaves of a page table that maps `byte` at
 * `iova` can be large; the first one to ask decides. ENOMEM. Every place needs an unplace, before
 * the unpin; placing again what is placed cannot fail. */
int pages_place(struct pages *pages, uint64_t byte, uint64_t iova);
void pages_unplace(struct pages *pages);

/* The physical address of a byte of pages that the caller holds placed. */
uint64_t pages_phys(const struct pages *pages, uint64_t byte);

/* The placed pages at a physical address, which somebody holds placed meanwhile, and how far they
 * go on; NULL: nothing is there. */
struct pages *pages_at_phys(uint64_t phys, uint64_t *byte, uint64_t *length);

/* Append where the bytes are. What is not pinned is looked for now, with the errors of a pin, and
 * not paid for. */
int pages_collect(struct pages *pages, uint64_t byte, uint64_t length, struct copy_list *list);

/* Where a byte of placed pages is: run->length at most, less if the memory behind is not in one
 * piece. No references: it is held as long as the pages are pinned. */
void pages_locate(const struct pages *pages, uint64_t byte, struct copy_run *run);

/* Which page of memory a page is, whoever maps it and where. Kept only while something holds the
 * page; `huge` is no part of it. */
struct page_id {
  uint64_t dev, ino; /* of a file; private memory: 0, the address space */
  uint64_t at;       /* in that, a multiple of PAGE_SIZE */
  int huge;
};

/* What a byte lies in: EFAULT, EINVAL (file), ENOMEM. */
int pages_identify(struct pages *pages, uint64_t byte, struct page_id *out);
/* How many pages objects have it pinned. */
uint64_t pages_count_pinners(const struct page_id *id);

#endif
