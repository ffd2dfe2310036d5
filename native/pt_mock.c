/*
 * Entries of the mock IOMMU's page tables: a format of our own, with leaves of every power of two
 * from 2 KiB on, as AMD's has them: bit 0 read, 1 write, 2 leaf, 3 dirty, 4-9 log2 of the leaf's
 * size, 11-63 address. An entry of 0 is not present.
 */
#include "iommufs.h"
#include "pt.h"

#define READ 1ull
#define WRITE 2ull
#define LEAF 4ull
#define DIRTY 8ull
#define SIZE_SHIFT 4
#define SIZE_MASK 0x3full
#define ADDRESS 0xfffffffffffff800ull

static uint64_t table_entry(const uint64_t *table, unsigned level) {
  (void)level;
  return (uintptr_t)table | READ | WRITE;
}

static uint64_t leaf_entry(uint64_t phys, unsigned level, unsigned lg2, uint32_t prot) {
  (void)level;
  return (phys & ADDRESS) | (uint64_t)lg2 << SIZE_SHIFT | LEAF | (prot & IOFS_READ ? READ : 0) |
         (prot & IOFS_WRITE ? WRITE : 0);
}

static int is_leaf(uint64_t entry, unsigned level) {
  (void)level;
  return !!(entry & LEAF);
}

static uint64_t *table(uint64_t entry) { return (uint64_t *)(uintptr_t)(entry & ADDRESS); }

static uint64_t phys(uint64_t entry) { return entry & ADDRESS; }

static uint32_t prot(uint64_t entry) {
  return (entry & READ ? IOFS_READ : 0) | (entry & WRITE ? IOFS_WRITE : 0);
}

static unsigned leaf_lg2(uint64_t entry, unsigned shift) {
  (void)shift;
  return (unsigned)(entry >> SIZE_SHIFT & SIZE_MASK);
}

const struct pt_format pt_mock = {11,   table_entry, leaf_entry, is_leaf, table,
                                  phys, prot,        leaf_lg2,   DIRTY};
