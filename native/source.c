/*
 * Where the pages of a pages object have their memory, and whether Linux would pin them.
 *
 * One question for each mapping of the client, none for each page, and no page is touched. What
 * pin_user_pages() with FOLL_LONGTERM refuses is refused (oracle: tried for every protection, for
 * anonymous, tmpfs, ext4 and device mappings, and past the end of files).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "alloc.h"
#include "segment.h"

static uint64_t page_up(uint64_t bytes) { return (bytes + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1); }

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

void segment_free(struct segment *segment) {
  if (segment->window)
    window_put(segment->window);
  alloc_free(segment);
}

/* Takes the reference of window over, on failure too. */
static int append(struct segment_list *list, uint64_t first, uint64_t last, struct window *window,
                  unsigned char *memory) {
  struct segment *tail = list->last, *segment;
  if (tail && !tail->window && !window && tail->node.last + 1 == first) {
    tail->node.last = last;
    list->n_pages += last - first + 1;
    return 0;
  }
  if (!(segment = alloc_zeroed(sizeof *segment))) {
    if (window)
      window_put(window);
    return -ENOMEM;
  }
  segment->node.start = first;
  segment->node.last = last;
  segment->window = window;
  segment->memory = memory;
  *(tail ? &tail->next : &list->first) = segment;
  list->last = segment;
  list->n_pages += last - first + 1;
  return 0;
}

static int append_window(struct segment_list *list, uint64_t first, uint64_t last,
                         struct memfile *file, uint64_t offset) {
  struct window *window;
  int err = window_open(file, offset, (last - first + 1) << PAGE_LG2, &window);
  if (err)
    return err;
  return append(list, first, last, window, window->memory + (offset - window->node.start));
}

static int find_file(const struct pages *pages, uint64_t first, uint64_t last,
                     struct segment_list *list) {
  uint64_t offset = pages->base + (first << PAGE_LG2);
  uint64_t length = (last - first + 1) << PAGE_LG2, size;
  if (pages->kind != PAGES_FILE && pages->kind != PAGES_DMABUF)
    return -EINVAL;
  /* memfd_pin_folios(): the last byte must be inside the file, to the byte. */
  size = memfile_size(pages->file);
  if (offset > size || length > size - offset)
    return -EINVAL;
  return append_window(list, first, last, pages->file, offset) ? -ENOMEM : 0;
}

/* check_vma_flags() of mm/gup.c. A mapping with PROT_WRITE only can be pinned for writing. */
static int check_protection(const struct pages *pages, const struct vma *vma) {
  if (mm_is_forbidden(vma->major, vma->minor))
    return -EFAULT;
  return vma->flags & (pages->writable ? VMA_WRITE : VMA_READ) ? 0 : -EFAULT;
}

static int look_at_file(const struct iofs_mm *mm, const struct vma *vma, struct statx *stat) {
  char path[80];
  snprintf(path, sizeof path, "/proc/%d/map_files/%llx-%llx", mm->process,
           (unsigned long long)vma->start, (unsigned long long)vma->end);
  return statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE | STATX_SIZE, stat) ? -errno : 0;
}

/* What is known of the file behind a mapping, without asking its file system anything that a dead
 * FUSE or network server could leave unanswered. */
static int check_file(const struct pages *pages, const struct vma *vma, uint64_t *size) {
  struct statx stat;
  int err = look_at_file(pages->mm, vma, &stat);
  *size = INT64_MAX;
  if (err == -ENOENT && mm_look_again(pages->mm)) /* the process is in another one */
    err = look_at_file(pages->mm, vma, &stat);
  if (err)
    return 0; /* no right to look: take it for memory, a copy will find out */
  if (S_ISREG(stat.stx_mode)) {
    *size = stat.stx_size;
    return 0;
  }
  /* /dev/zero is anonymous memory; whatever else drivers map is VM_IO or VM_PFNMAP. */
  return S_ISCHR(stat.stx_mode) && stat.stx_rdev_major == 1 && stat.stx_rdev_minor == 5 ? 0
                                                                                        : -EFAULT;
}

/* The pages [first, last] lie in one mapping with a file; `offset` is that of the first. */
static int find_in_file_vma(const struct pages *pages, uint64_t first, uint64_t last,
                            const struct vma *vma, uint64_t offset, struct segment_list *list) {
  struct memfile *file = NULL;
  uint64_t size, length = (last - first + 1) << PAGE_LG2;
  int err = vma->flags & VMA_SHARED ? memfile_of_vma(pages->mm, vma, &file) : 0;

  /* writable_file_mapping_allowed(): write-back of the file would miss what devices write. */
  if (err == -EINVAL && pages->writable)
    return -EFAULT;
  if (file)
    size = memfile_size(file);
  else if ((err = check_file(pages, vma, &size)))
    return err;
  err = offset > page_up(size) || length > page_up(size) - offset ? -EFAULT : 0;
  if (!err && file && !append_window(list, first, last, file, offset)) {
    memfile_put(file);
    return 0;
  }
  if (file)
    memfile_put(file);
  /* No window: the memory is still reached through the client's address space. */
  return err ? err : append(list, first, last, NULL, NULL);
}

static int find_user(const struct pages *pages, uint64_t first, uint64_t last,
                     struct segment_list *list) {
  while (first <= last) {
    uint64_t address = pages->base + (first << PAGE_LG2), end;
    struct vma vma;
    int err = mm_find_vma(pages->mm, address, &vma);
    if (!err)
      err = check_protection(pages, &vma);
    if (err)
      return err;
    end = min_u64(last, first + ((vma.end - address) >> PAGE_LG2) - 1);
    if (vma.ino)
      err = find_in_file_vma(pages, first, end, &vma, vma.offset + address - vma.start, list);
    else
      err = append(list, first, end, NULL, NULL);
    if (err)
      return err;
    first = end + 1;
  }
  return 0;
}

int source_find(const struct pages *pages, uint64_t first, uint64_t last,
                struct segment_list *list) {
  return pages->kind == PAGES_USER ? find_user(pages, first, last, list)
                                   : find_file(pages, first, last, list);
}
