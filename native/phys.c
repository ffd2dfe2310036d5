/* Emulated physical addresses (see phys.h). */
#include "phys.h"

#include <errno.h>
#include <pthread.h>

/* Below lies what a PC keeps for itself; entries of page tables have 52 bits for an address. */
#define FIRST (4ull << 30)
#define LAST ((1ull << 51) - 1)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct itree tree = {NULL, ITREE_GAPS};
/* Next fit: large alignments leave holes behind that a first fit would have to look at again. */
static uint64_t cursor = FIRST;

static int find_gap(uint64_t from, uint64_t length, uint64_t like, uint64_t grain, uint64_t *out) {
  struct itree_gaps gaps;
  uint64_t start, last;
  itree_gaps_begin(&gaps, &tree, from, LAST, length);
  while (itree_gaps_next(&gaps, &start, &last)) {
    start += (like - start) & (grain - 1);
    if (start <= last && last - start >= length - 1) {
      *out = start;
      return 0;
    }
  }
  return -ENOMEM;
}

int phys_reserve(struct itree_node *node, uint64_t length, uint64_t like) {
  uint64_t grain = length < 2ull << 20 ? 4096 : length < 1ull << 30 ? 2ull << 20 : 1ull << 30;
  uint64_t start;
  int err = -ENOMEM;
  pthread_mutex_lock(&lock);
  if (length <= LAST - FIRST) {
    err = find_gap(cursor, length, like & ~4095ull, grain, &start);
    if (err)
      err = find_gap(FIRST, length, like & ~4095ull, grain, &start);
  }
  if (!err) {
    node->start = start;
    node->last = start + length - 1;
    itree_insert(&tree, node);
    cursor = start + length;
  }
  pthread_mutex_unlock(&lock);
  return err;
}

void phys_release(struct itree_node *node) {
  pthread_mutex_lock(&lock);
  itree_erase(&tree, node);
  pthread_mutex_unlock(&lock);
}

struct itree_node *phys_find(uint64_t address) {
  pthread_mutex_lock(&lock);
  struct itree_node *node = itree_find(&tree, address, address);
  pthread_mutex_unlock(&lock);
  return node;
}
