/*
 * Second-level paging entries of VT-d (its specification, section 9.8): bit 0 read, 1 write, 7 page
 * size, 8 accessed, 9 dirty, 12-51 address. An entry with neither read nor write is not present.
 */
#include "iommufs.h"
#include "pt.h"

#define READ 1ull
#define WRITE 2ull
#define LARGE 0x80ull
#define DIRTY 0x200ull
#define ADDRESS 0x000ffffffffff000ull

static uint64_t table_entry(const uint64_t *table, unsigned level) {
  (void)level;
  return (uintptr_t)table | READ | WRITE;
}

static uint64_t leaf_entry(uint64_t phys, unsigned level, unsigned lg2, uint32_t prot) {
  (void)lg2;
  return (phys & ADDRESS) | (level ? LARGE : 0) | (prot & IOFS_READ ? READ : 0) |
         (prot & IOFS_WRITE ? WRITE : 0);
}

static int is_leaf(uint64_t entry, unsigned level) { return !level || entry & LARGE; }

static uint64_t *table(uint64_t entry) { return (uint64_t *)(uintptr_t)(entry & ADDRESS); }

static uint64_t phys(uint64_t entry) { return entry & ADDRESS; }

static uint32_t prot(uint64_t entry) {
  return (entry & READ ? IOFS_READ : 0) | (entry & WRITE ? IOFS_WRITE : 0);
}

const struct pt_format pt_vtd = {12,   table_entry, leaf_entry, is_leaf, table,
                                 phys, prot,        NULL,       DIRTY};
