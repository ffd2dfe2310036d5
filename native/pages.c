/* Pages objects: pin counts for each interval of pages, and physical addresses (see pages.h). */
#define _GNU_SOURCE
#include "pages.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "alloc.h"
#include "charge.h"
#include "phys.h"
#include "segment.h"
#include "stats.h"

struct pins {
  struct pins *next, *prev; /* of all pages objects with pins */
  struct pages *pages;
  struct itree segments;  /* what is pinned: disjoint, by page index */
  struct itree_node phys; /* the physical addresses, while n_placed */
  uint64_t n_placed;
};

/* A mutex in each of a million small objects would cost more than the objects need. Nobody holds
 * two of these at once, but who looks at all pins holds all of them. */
#define N_LOCKS 64
static pthread_mutex_t locks[N_LOCKS] = {[0 ... N_LOCKS - 1] = PTHREAD_MUTEX_INITIALIZER};

/* Changed under a lock of `locks` and this one. */
static pthread_mutex_t all_pins_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pins *all_pins;

static pthread_mutex_t *lock_of(const struct pages *pages) {
  return &locks[((uintptr_t)pages >> 6) % N_LOCKS];
}

static struct slab_pool pool = SLAB_POOL(sizeof(struct pages));

static int new_pages(struct iofs_mm *mm, const struct iofs_charge *charge, uint64_t start,
                     uint64_t length, int writable, struct pages **out) {
  struct pages *pages = alloc_object(&pool);
  if (!pages)
    return -ENOMEM;
  uint64_t offset = start % PAGE_SIZE;
  memset(pages, 0, sizeof *pages);
  pages->refs = 1;
  pages->writable = (uint8_t)!!writable;
  pages->charge_mode = (uint8_t)charge->mode;
  pages->uid = charge->uid;
  pages->tgid = charge->tgid;
  pages->base = start - offset;
  pages->n_pages = length >> PAGE_LG2;
  pages->n_pages += (length % PAGE_SIZE + offset + PAGE_SIZE - 1) >> PAGE_LG2;
  pages->mm = mm;
  iofs_mm_get(mm);
  charge_note_limit(charge, mm);
  stats.pages++;
  *out = pages;
  return 0;
}

int pages_new_user(struct iofs_mm *mm, const struct iofs_charge *charge, uint64_t start,
                   uint64_t length, int writable, struct pages **out) {
  return new_pages(mm, charge, start, length, writable, out);
}

int pages_new_file(struct iofs_mm *mm, const struct iofs_charge *charge, int fd, uint64_t start,
                   uint64_t length, int writable, struct pages **out) {
  struct memfile *file = NULL;
  int err = memfile_of_fd(mm, fd, &file);
  if (err && err != -EINVAL)
    return err;
  if ((err = new_pages(mm, charge, start, length, writable, out))) {
    if (file)
      memfile_put(file);
    return err;
  }
  (*out)->kind = file ? PAGES_FILE : PAGES_OTHER_FILE;
  (*out)->file = file;
  return 0;
}

void pages_get(struct pages *pages) { pages->refs++; }

void pages_put(struct pages *pages) {
  if (--pages->refs)
    return;
  assert(!pages->pins);
  if (pages->file)
    memfile_put(pages->file);
  iofs_mm_put(pages->mm);
  alloc_free_object(&pool, pages);
  stats.pages--;
}

/* ---- pins; all under the lock of the pages object -------------------------------------------- */

static struct segment *segment_of(struct itree_node *node) {
  return node ? ITREE_OF(node, struct segment, node) : NULL;
}

static struct segment *find_segment(const struct pages *pages, uint64_t first, uint64_t last) {
  return pages->pins ? segment_of(itree_find(&pages->pins->segments, first, last)) : NULL;
}

static void link_pins(struct pins *pins) {
  pthread_mutex_lock(&all_pins_lock);
  pins->next = all_pins;
  if (all_pins)
    all_pins->prev = pins;
  all_pins = pins;
  pthread_mutex_unlock(&all_pins_lock);
}

static void unlink_pins(struct pins *pins) {
  pthread_mutex_lock(&all_pins_lock);
  if (pins->next)
    pins->next->prev = pins->prev;
  *(pins->prev ? &pins->prev->next : &all_pins) = pins->next;
  pthread_mutex_unlock(&all_pins_lock);
}

static int need_pins(struct pages *pages) {
  if (pages->pins)
    return 0;
  if (!(pages->pins = alloc_zeroed(sizeof *pages->pins)))
    return -ENOMEM;
  pages->pins->pages = pages;
  pages->pins->segments.kind = ITREE_GAPS;
  link_pins(pages->pins);
  return 0;
}

static void drop_idle_pins(struct pages *pages) {
  if (pages->pins && !pages->pins->segments.root) {
    assert(!pages->pins->n_placed);
    unlink_pins(pages->pins);
    alloc_free(pages->pins);
    pages->pins = NULL;
  }
}

/* Let no segment reach over the border below index. */
static int divide(struct pages *pages, uint64_t index) {
  struct segment *left, *right;
  if (!index || !(left = find_segment(pages, index - 1, index - 1)) || left->node.last < index)
    return 0;
  if (!(right = alloc_zeroed(sizeof *right)))
    return -ENOMEM;
  right->node.start = index;
  right->node.last = left->node.last;
  right->users = left->users;
  right->window = left->window;
  if (left->window) {
    window_get(left->window);
    right->memory = left->memory + ((index - left->node.start) << PAGE_LG2);
  }
  itree_set_last(&left->node, index - 1);
  itree_insert(&pages->pins->segments, &right->node);
  return 0;
}

/* Find the memory of the pages in [first, last] that no segment covers. */
static int find_missing(struct pages *pages, uint64_t first, uint64_t last,
                        struct segment_list *list) {
  struct segment *segment;
  int err = 0;
  while (!err && first <= last && (segment = find_segment(pages, first, last))) {
    if (segment->node.start > first)
      err = source_find(pages, first, segment->node.start - 1, list);
    first = segment->node.last + 1;
  }
  return err || first > last ? err : source_find(pages, first, last, list);
}

static void free_list(struct segment_list *list) {
  for (struct segment *segment = list->first, *next; segment; segment = next) {
    next = segment->next;
    segment_free(segment);
  }
}

static struct iofs_charge charge_of(const struct pages *pages) {
  return (struct iofs_charge){pages->charge_mode, pages->uid, pages->tgid};
}

static void insert_list(struct pages *pages, struct segment_list *list) {
  for (struct segment *segment = list->first; segment; segment = segment->next)
    itree_insert(&pages->pins->segments, &segment->node);
  stats.pinned_pages += list->n_pages;
}

static int pin(struct pages *pages, uint64_t first, uint64_t last) {
  struct segment_list list = {0};
  struct iofs_charge charge = charge_of(pages);
  int err = need_pins(pages);
  if (!err)
    err = divide(pages, first);
  if (!err)
    err = divide(pages, last + 1);
  if (!err)
    err = find_missing(pages, first, last, &list);
  if (!err)
    err = charge_add(&charge, pages->mm, list.n_pages);
  if (err) {
    free_list(&list);
    drop_idle_pins(pages);
    return err;
  }
  insert_list(pages, &list);
  for (struct segment *segment = find_segment(pages, first, last); segment;
       segment = segment_of(itree_find_next(&segment->node, first, last)))
    segment->users++;
  return 0;
}

int pages_pin(struct pages *pages, uint64_t first, uint64_t last) {
  pthread_mutex_lock(lock_of(pages));
  int err = pin(pages, first, last);
  pthread_mutex_unlock(lock_of(pages));
  return err;
}

void pages_unpin(struct pages *pages, uint64_t first, uint64_t last) {
  struct iofs_charge charge = charge_of(pages);
  uint64_t n_pages = 0;
  pthread_mutex_lock(lock_of(pages));
  struct segment *segment = find_segment(pages, first, last), *next;
  for (; segment; segment = next) {
    next = segment_of(itree_find_next(&segment->node, first, last));
    assert(segment->node.start >= first && segment->node.last <= last && segment->users);
    if (--segment->users)
      continue;
    n_pages += segment->node.last - segment->node.start + 1;
    itree_erase(&pages->pins->segments, &segment->node);
    segment_free(segment);
  }
  drop_idle_pins(pages);
  pthread_mutex_unlock(lock_of(pages));
  charge_remove(&charge, pages->mm, n_pages);
  stats.pinned_pages -= n_pages;
}

uint64_t pages_n_pinned(const struct pages *pages) {
  uint64_t n_pages = 0;
  pthread_mutex_lock(lock_of(pages));
  struct itree_node *node = pages->pins ? itree_first(&pages->pins->segments) : NULL;
  for (; node; node = itree_next(node))
    n_pages += node->last - node->start + 1;
  pthread_mutex_unlock(lock_of(pages));
  return n_pages;
}

void pages_set_process(struct pages *pages, struct iofs_mm *mm, const struct iofs_charge *charge) {
  struct iofs_mm *old = pages->mm;
  iofs_mm_get(mm);
  pthread_mutex_lock(lock_of(pages));
  pages->mm = mm;
  pages->uid = charge->uid;
  pages->tgid = charge->tgid;
  pthread_mutex_unlock(lock_of(pages));
  iofs_mm_put(old);
}

int pages_divide(struct pages *pages, uint64_t index) {
  pthread_mutex_lock(lock_of(pages));
  int err = divide(pages, index);
  pthread_mutex_unlock(lock_of(pages));
  return err;
}

/* ---- physical addresses and bytes ------------------------------------------------------------ */

int pages_place(struct pages *pages, uint64_t byte, uint64_t iova) {
  int err = 0;
  pthread_mutex_lock(lock_of(pages));
  struct pins *pins = pages->pins;
  if (!pins->n_placed) /* n_pages is below 2^52, so the length fits */
    err = phys_reserve(&pins->phys, pages->n_pages << PAGE_LG2, iova - byte);
  if (!err)
    pins->n_placed++;
  pthread_mutex_unlock(lock_of(pages));
  return err;
}

uint64_t pages_phys(const struct pages *pages, uint64_t byte) {
  return pages->pins->phys.start + byte;
}

void pages_unplace(struct pages *pages) {
  pthread_mutex_lock(lock_of(pages));
  if (!--pages->pins->n_placed)
    phys_release(&pages->pins->phys);
  pthread_mutex_unlock(lock_of(pages));
}

struct pages *pages_at_phys(uint64_t phys, uint64_t *byte, uint64_t *length) {
  struct itree_node *node = phys_find(phys);
  if (!node)
    return NULL;
  *byte = phys - node->start;
  *length = node->last - phys + 1;
  return ITREE_OF(node, struct pins, phys)->pages;
}

/* The part of [byte, byte + length) that lies in the segment. */
static struct copy_run run_in(const struct pages *pages, const struct segment *segment,
                              uint64_t byte, uint64_t length) {
  uint64_t left = ((segment->node.last + 1) << PAGE_LG2) - byte;
  struct copy_run run = {.window = segment->window, .mm = pages->mm};
  run.length = length < left ? length : left;
  if (segment->window)
    run.memory = segment->memory + (byte - (segment->node.start << PAGE_LG2));
  else
    run.address = pages->base + byte;
  return run;
}

void pages_locate(const struct pages *pages, uint64_t byte, struct copy_run *run) {
  pthread_mutex_lock(lock_of(pages));
  const struct segment *segment = find_segment(pages, byte >> PAGE_LG2, byte >> PAGE_LG2);
  assert(segment); /* what is placed is pinned */
  *run = run_in(pages, segment, byte, run->length);
  pthread_mutex_unlock(lock_of(pages));
}

/* Append the part of [byte, byte + length) that lies in the segment; bytes appended, or -errno. */
static int64_t collect(const struct pages *pages, const struct segment *segment, uint64_t byte,
                       uint64_t length, struct copy_list *list) {
  struct copy_run run = run_in(pages, segment, byte, length);
  int err = copy_list_add(list, &run);
  return err ? err : (int64_t)run.length;
}

/* Append [byte, byte + length), of which nothing is pinned. */
static int collect_missing(struct pages *pages, uint64_t byte, uint64_t length,
                           struct copy_list *list) {
  struct segment_list found = {0};
  int64_t done = source_find(pages, byte >> PAGE_LG2, (byte + length - 1) >> PAGE_LG2, &found);
  for (struct segment *segment = found.first; segment && done >= 0; segment = segment->next) {
    done = collect(pages, segment, byte, length, list);
    byte += (uint64_t)done;
    length -= (uint64_t)done;
  }
  free_list(&found);
  return done < 0 ? (int)done : 0;
}

int pages_collect(struct pages *pages, uint64_t byte, uint64_t length, struct copy_list *list) {
  int64_t done = 0;
  pthread_mutex_lock(lock_of(pages));
  while (length && done >= 0) {
    uint64_t last = (byte + length - 1) >> PAGE_LG2, part = length;
    struct segment *segment = find_segment(pages, byte >> PAGE_LG2, last);
    if (segment && segment->node.start <= byte >> PAGE_LG2)
      done = collect(pages, segment, byte, length, list);
    else {
      if (segment)
        part = (segment->node.start << PAGE_LG2) - byte;
      done = collect_missing(pages, byte, part, list);
      if (!done)
        done = (int64_t)part;
    }
    byte += (uint64_t)done;
    length -= (uint64_t)done;
  }
  pthread_mutex_unlock(lock_of(pages));
  return done < 0 ? (int)done : 0;
}

/* ---- which page it is ------------------------------------------------------------------------ */

static void identify(const struct window *window, const unsigned char *memory,
                     const struct iofs_mm *mm, uint64_t address, struct page_id *out) {
  uint64_t block;
  *out = (struct page_id){0, (uintptr_t)mm, address, 0};
  if (window) {
    window_identify(window, memory, &out->dev, &out->ino, &out->at, &block);
    out->huge = block > PAGE_SIZE;
  }
  out->at &= ~(PAGE_SIZE - 1);
}

int pages_identify(struct pages *pages, uint64_t byte, struct page_id *out) {
  struct copy_list list;
  copy_list_init(&list);
  int err = pages_collect(pages, byte, 1, &list);
  if (!err)
    identify(list.runs->window, list.runs->memory, list.runs->mm, list.runs->address, out);
  copy_list_free(&list);
  return err;
}

static int holds(const struct pages *pages, const struct segment *segment,
                 const struct page_id *id) {
  struct page_id first;
  identify(segment->window, segment->memory, pages->mm,
           pages->base + (segment->node.start << PAGE_LG2), &first);
  return first.dev == id->dev && first.ino == id->ino && id->at >= first.at &&
         (id->at - first.at) >> PAGE_LG2 <= segment->node.last - segment->node.start;
}

uint64_t pages_count_pinners(const struct page_id *id) {
  uint64_t n = 0;
  for (int i = 0; i < N_LOCKS; i++)
    pthread_mutex_lock(&locks[i]);
  for (const struct pins *pins = all_pins; pins; pins = pins->next) {
    struct itree_node *node = itree_first(&pins->segments);
    while (node && !holds(pins->pages, segment_of(node), id))
      node = itree_next(node);
    n += !!node;
  }
  for (int i = N_LOCKS; i--;)
    pthread_mutex_unlock(&locks[i]);
  return n;
}
