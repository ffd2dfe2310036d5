/*
 * Page tables: radix trees of 512-entry tables, in the format of the emulated IOMMU. One walker
 * (pt.c) for all; a format (pt_*.c) says only what an entry looks like.
 *
 * Level 0 holds the smallest pages; an entry of level n stands for 1 << (page_lg2 + 9 * n) bytes.
 * Some formats have leaves of any power of two: 2, 4 … 256 equal entries side by side.
 * Pointers between tables are addresses in this process: a table is 4096 bytes, aligned. No locks.
 */
#ifndef IOFS_PT_H
#define IOFS_PT_H

#include <stddef.h>
#include <stdint.h>

struct pt_format {
  unsigned min_page_lg2; /* what an entry can still point at */
  uint64_t (*table_entry)(const uint64_t *table, unsigned level); /* that of `table` */
  /* A leaf of 1 << lg2 bytes; prot: enum iofs_prot. */
  uint64_t (*leaf_entry)(uint64_t phys, unsigned level, unsigned lg2, uint32_t prot);
  int (*is_leaf)(uint64_t entry, unsigned level); /* of an entry that is not 0 */
  uint64_t *(*table)(uint64_t entry);
  uint64_t (*phys)(uint64_t entry);
  uint32_t (*prot)(uint64_t entry);
  /* Of a leaf, one of whose entries stands for 1 << shift bytes; NULL: each leaf is one entry. */
  unsigned (*lg2)(uint64_t entry, unsigned shift);
  uint64_t dirty;                  /* the bit of a leaf that says it was written through */
};

extern const struct pt_format pt_vtd, pt_amd, pt_mock;

struct pt {
  const struct pt_format *format;
  uint64_t *root;
  uint64_t sizes; /* bit n: leaves of 1 << n bytes */
  unsigned page_lg2, n_levels;
  uint64_t n_bytes; /* of all tables */
};

/* EINVAL: no sizes, or one that is no level, or too small for the format; ENOMEM. last: the highest
 * iova. */
int pt_init(struct pt *pt, const struct pt_format *format, uint64_t sizes, uint64_t last);
void pt_destroy(struct pt *pt);

/* Map what is not mapped yet, with the largest leaves of `sizes` (a part of pt->sizes) that fit. On
 * ENOMEM nothing of it stays mapped. Everything is a multiple of the smallest page. */
int pt_map(struct pt *pt, uint64_t iova, uint64_t phys, uint64_t length, uint32_t prot,
           uint64_t sizes);

/* Leaves never reach over the ends; holes are skipped; tables that are empty then are freed. */
void pt_unmap(struct pt *pt, uint64_t iova, uint64_t length);

struct pt_leaf {
  uint64_t phys;   /* of the iova asked for */
  uint64_t length; /* from there to the end of the leaf */
  uint32_t prot;
};

/* 0: nothing is mapped at iova. */
int pt_find(const struct pt *pt, uint64_t iova, struct pt_leaf *out);

/* Dirty bits. They may be set by several threads at once; all else changes the table alone. */
void pt_set_dirty(struct pt *pt, uint64_t iova);
/* 1: the leaf at iova, which must be mapped, is dirty, and clean from now on if `clear`. */
int pt_read_dirty(struct pt *pt, uint64_t iova, int clear);
void pt_clean(struct pt *pt); /* all leaves */

#endif
