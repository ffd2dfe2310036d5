/*
 * Entries of AMD's I/O page tables, version 1 (its IOMMU specification, 2.2.3): bit 0 present, 6
 * dirty, 9-11 next level, 12-51 address, 61 read, 62 write. The next level of a leaf is 0 and that
 * of a pointer is the level of the table, counted from 1. Next level 7, leaves of other sizes than
 * those of the levels, is not used.
 */
#include "iommufs.h"
#include "pt.h"

#define PRESENT 1ull
#define DIRTY (1ull << 6)
#define NEXT_LEVEL_SHIFT 9
#define NEXT_LEVEL 0xe00ull
#define READ (1ull << 61)
#define WRITE (1ull << 62)
#define ADDRESS 0x000ffffffffff000ull

static uint64_t table_entry(const uint64_t *table, unsigned level) {
  return (uintptr_t)table | PRESENT | READ | WRITE | (level + 1ull) << NEXT_LEVEL_SHIFT;
}

static uint64_t leaf_entry(uint64_t phys, unsigned level, unsigned lg2, uint32_t prot) {
  (void)level, (void)lg2;
  return (phys & ADDRESS) | PRESENT | (prot & IOFS_READ ? READ : 0) |
         (prot & IOFS_WRITE ? WRITE : 0);
}

static int is_leaf(uint64_t entry, unsigned level) {
  (void)level;
  return !(entry & NEXT_LEVEL);
}

static uint64_t *table(uint64_t entry) { return (uint64_t *)(uintptr_t)(entry & ADDRESS); }

static uint64_t phys(uint64_t entry) { return entry & ADDRESS; }

static uint32_t prot(uint64_t entry) {
  return (entry & READ ? IOFS_READ : 0) | (entry & WRITE ? IOFS_WRITE : 0);
}

const struct pt_format pt_amd = {12,   table_entry, leaf_entry, is_leaf, table,
                                 phys, prot,        NULL,       DIRTY};
