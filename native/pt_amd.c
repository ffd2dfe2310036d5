/*
 * Entries of AMD's I/O page tables, version 1 (its IOMMU specification, 2.2.3): bit 0 present, 6
 * dirty, 9-11 next level, 12-51 address, 61 read, 62 write. The next level of a leaf is 0 and that
 * of a pointer is the level of the table, counted from 1. Next level 7 is a leaf of another size
 * than the levels have: the address below it is ones up to a zero, which is the upper half's bit.
 */
#include "iommufs.h"
#include "pt.h"

#define PAGE_LG2 12
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
  uint64_t entry = (phys & ADDRESS) | PRESENT | (prot & IOFS_READ ? READ : 0) |
                   (prot & IOFS_WRITE ? WRITE : 0);
  if (lg2 != PAGE_LG2 + 9 * level) {
    const uint64_t half = 1ull << (lg2 - 1);
    entry |= NEXT_LEVEL | (half - 1) >> PAGE_LG2 << PAGE_LG2;
  }
  return entry;
}

static int is_leaf(uint64_t entry, unsigned level) {
  (void)level;
  entry &= NEXT_LEVEL;
  return !entry || entry == NEXT_LEVEL;
}

static unsigned leaf_lg2(uint64_t entry, unsigned shift) {
  if (!(entry & NEXT_LEVEL))
    return shift;
  return (unsigned)__builtin_ctzll(~(entry >> PAGE_LG2)) + PAGE_LG2 + 1;
}

static uint64_t *table(uint64_t entry) { return (uint64_t *)(uintptr_t)(entry & ADDRESS); }

static uint64_t phys(uint64_t entry) {
  uint64_t size = entry & NEXT_LEVEL ? 1ull << leaf_lg2(entry, 0) : 1ull << PAGE_LG2;
  return entry & ADDRESS & ~(size - 1);
}

static uint32_t prot(uint64_t entry) {
  return (entry & READ ? IOFS_READ : 0) | (entry & WRITE ? IOFS_WRITE : 0);
}

const struct pt_format pt_amd = {PAGE_LG2, table_entry, leaf_entry, is_leaf, table,
                                 phys,     prot,        leaf_lg2,   DIRTY};
