/* The walker of page tables (see pt.h). */
#include "pt.h"

#include <assert.h>
#include <errno.h>

#include "alloc.h"
#include "stats.h"

#define LEVEL_LG2 9
#define N_ENTRIES (1u << LEVEL_LG2)
#define TABLE_BYTES (N_ENTRIES * sizeof(uint64_t))

static unsigned shift_of(const struct pt *pt, unsigned level) {
  return pt->page_lg2 + level * LEVEL_LG2;
}

static unsigned index_of(const struct pt *pt, unsigned level, uint64_t iova) {
  return (unsigned)(iova >> shift_of(pt, level)) % N_ENTRIES;
}

static uint64_t *new_table(struct pt *pt) {
  uint64_t *table = alloc_aligned(TABLE_BYTES, TABLE_BYTES);
  if (table) {
    pt->n_bytes += TABLE_BYTES;
    stats.table_bytes += TABLE_BYTES;
  }
  return table;
}

static void free_table(struct pt *pt, uint64_t *table) {
  alloc_free(table);
  pt->n_bytes -= TABLE_BYTES;
  stats.table_bytes -= TABLE_BYTES;
}

static void free_tree(struct pt *pt, uint64_t *table, unsigned level) {
  for (unsigned i = 0; level && i < N_ENTRIES; i++)
    if (table[i] && !pt->format->is_leaf(table[i], level))
      free_tree(pt, pt->format->table(table[i]), level - 1);
  free_table(pt, table);
}

int pt_init(struct pt *pt, const struct pt_format *format, uint64_t sizes, uint64_t last) {
  if (!sizes)
    return -EINVAL;
  *pt = (struct pt){.format = format, .sizes = sizes};
  pt->page_lg2 = (unsigned)__builtin_ctzll(sizes);
  if (pt->page_lg2 < format->min_page_lg2)
    return -EINVAL;
  do
    pt->n_levels++;
  while (shift_of(pt, pt->n_levels) < 64 && last >> shift_of(pt, pt->n_levels));
  for (uint64_t left = sizes; left; left &= left - 1) {
    unsigned lg2 = (unsigned)__builtin_ctzll(left);
    if ((lg2 - pt->page_lg2) % LEVEL_LG2 && !format->lg2)
      return -EINVAL;
    if (lg2 >= shift_of(pt, pt->n_levels))
      pt->sizes &= ~(1ull << lg2); /* larger than the whole table */
  }
  return (pt->root = new_table(pt)) ? 0 : -ENOMEM;
}

void pt_destroy(struct pt *pt) {
  if (pt->root)
    free_tree(pt, pt->root, pt->n_levels - 1);
  pt->root = NULL;
}

/* The table of level `level` on the way to iova, made if it is missing; NULL: no memory. */
static uint64_t *descend(struct pt *pt, uint64_t iova, unsigned level) {
  uint64_t *table = pt->root;
  for (unsigned at = pt->n_levels - 1; at > level; at--) {
    uint64_t *entry = &table[index_of(pt, at, iova)];
    if (!*entry) {
      uint64_t *below = new_table(pt);
      if (!below)
        return NULL;
      *entry = pt->format->table_entry(below, at - 1);
    }
    assert(!pt->format->is_leaf(*entry, at));
    table = pt->format->table(*entry);
  }
  return table;
}

/* The size of the largest leaf that may stand at the beginning of the rest of a mapping. */
static unsigned leaf_lg2(uint64_t iova, uint64_t phys, uint64_t length, uint64_t sizes) {
  uint64_t fits = (iova | phys) ? ((iova | phys) & -(iova | phys)) * 2 - 1 : UINT64_MAX;
  fits &= UINT64_MAX >> __builtin_clzll(length);
  sizes &= fits;
  assert(sizes);
  return 63 - (unsigned)__builtin_clzll(sizes);
}

int pt_map(struct pt *pt, uint64_t iova, uint64_t phys, uint64_t length, uint32_t prot,
           uint64_t sizes) {
  uint64_t done = 0;
  while (done < length) {
    unsigned lg2 = leaf_lg2(iova + done, phys + done, length - done, sizes);
    unsigned level = (lg2 - pt->page_lg2) / LEVEL_LG2;
    uint64_t size = 1ull << lg2;
    uint64_t *table = descend(pt, iova + done, level);
    if (!table) {
      /* Also what descend() made before it failed: a table without an entry. */
      pt_unmap(pt, iova, done + 1);
      return -ENOMEM;
    }
    /* The same size goes on at least to the end of the table, as far as the mapping does. */
    unsigned i = index_of(pt, level, iova + done), n = 1u << (lg2 - shift_of(pt, level));
    do {
      uint64_t entry = pt->format->leaf_entry(phys + done, level, lg2, prot);
      for (unsigned end = i + n; i < end; i++) {
        assert(!table[i]);
        table[i] = entry;
      }
      done += size;
    } while (i < N_ENTRIES && length - done >= size &&
             (!pt->format->lg2 || leaf_lg2(iova + done, phys + done, length - done, sizes) == lg2));
  }
  return 0;
}

static int is_empty(const uint64_t *table) {
  uint64_t any = 0;
  for (unsigned i = 0; i < N_ENTRIES; i++)
    any |= table[i];
  return !any;
}

/* Clear [iova, last], which lies in the range of `table`. */
static void clear(struct pt *pt, uint64_t *table, unsigned level, uint64_t iova, uint64_t last) {
  unsigned shift = shift_of(pt, level), end = index_of(pt, level, last);
  for (unsigned i = index_of(pt, level, iova); i <= end; i++) {
    uint64_t entry = table[i];
    uint64_t entry_last = iova | ((1ull << shift) - 1);
    if (entry_last > last)
      entry_last = last;
    if (entry && pt->format->is_leaf(entry, level))
      table[i] = 0;
    else if (entry) {
      uint64_t *below = pt->format->table(entry);
      clear(pt, below, level - 1, iova, entry_last);
      if (is_empty(below)) {
        free_table(pt, below);
        table[i] = 0;
      }
    }
    iova = entry_last + 1;
  }
}

void pt_unmap(struct pt *pt, uint64_t iova, uint64_t length) {
  clear(pt, pt->root, pt->n_levels - 1, iova, iova + length - 1);
}

/* The first entry of the leaf at iova; NULL: there is none. */
static uint64_t *find_leaf(const struct pt *pt, uint64_t iova, unsigned *n, unsigned *lg2) {
  uint64_t *table = pt->root;
  for (unsigned level = pt->n_levels; level--;) {
    unsigned i = index_of(pt, level, iova);
    uint64_t entry = table[i];
    if (!entry)
      return NULL;
    if (pt->format->is_leaf(entry, level)) {
      unsigned shift = shift_of(pt, level);
      *lg2 = pt->format->lg2 ? pt->format->lg2(entry, shift) : shift;
      *n = 1u << (*lg2 - shift);
      return &table[i & ~(*n - 1)];
    }
    table = pt->format->table(entry);
  }
  return NULL;
}

int pt_find(const struct pt *pt, uint64_t iova, struct pt_leaf *out) {
  unsigned n, lg2;
  const uint64_t *entry = find_leaf(pt, iova, &n, &lg2);
  if (!entry)
    return 0;
  uint64_t mask = (1ull << lg2) - 1;
  out->phys = pt->format->phys(*entry) + (iova & mask);
  out->length = mask - (iova & mask) + 1;
  out->prot = pt->format->prot(*entry);
  return 1;
}

void pt_set_dirty(struct pt *pt, uint64_t iova) {
  unsigned n, lg2;
  uint64_t *entry = find_leaf(pt, iova, &n, &lg2);
  if (entry)
    __atomic_fetch_or(entry, pt->format->dirty, __ATOMIC_RELAXED);
}

int pt_read_dirty(struct pt *pt, uint64_t iova, int clear) {
  unsigned n, lg2;
  uint64_t *entry = find_leaf(pt, iova, &n, &lg2), dirty = pt->format->dirty;
  return !!(dirty & (clear ? __atomic_fetch_and(entry, ~dirty, __ATOMIC_RELAXED)
                           : __atomic_load_n(entry, __ATOMIC_RELAXED)));
}

static void clean(struct pt *pt, uint64_t *table, unsigned level) {
  for (unsigned i = 0; i < N_ENTRIES; i++)
    if (table[i] && pt->format->is_leaf(table[i], level))
      table[i] &= ~pt->format->dirty;
    else if (table[i])
      clean(pt, pt->format->table(table[i]), level - 1);
}

void pt_clean(struct pt *pt) { clean(pt, pt->root, pt->n_levels - 1); }
