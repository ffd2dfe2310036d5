/*
 * Files whose pages are memory (tmpfs, hugetlbfs), and the windows onto them that are mapped into
 * this process. A window outlives the client's own mapping, and the client, as a pin does.
 *
 * A memfile belongs to one client address space: inode numbers of memory files wrap around, so two
 * clients must never meet in one object. Windows are shared by all that lies inside them, because
 * a process may have only so many mappings.
 */
#ifndef IOFS_WINDOW_H
#define IOFS_WINDOW_H

#include "itree.h"
#include "mm.h"

struct memfile;

struct window {
  struct itree_node node; /* the bytes of the file */
  struct memfile *file;
  unsigned char *memory; /* of node.start */
  uint32_t refs;
  int writable;
};

/* The file behind a descriptor of ours, or behind a shared mapping of the client. EINVAL: it is no
 * memory, and nobody asked its file system, which might never answer; other errors: it cannot be
 * had. */
int memfile_of_fd(struct iofs_mm *mm, int fd, struct memfile **out);
int memfile_of_vma(struct iofs_mm *mm, const struct vma *vma, struct memfile **out);
void memfile_put(struct memfile *file);
uint64_t memfile_size(const struct memfile *file);

/* A window with all of [offset, offset + length), length > 0: ENOMEM and what else mmap() says. */
int window_open(struct memfile *file, uint64_t offset, uint64_t length, struct window **out);
void window_get(struct window *window);
void window_put(struct window *window);

/* Which byte of which file `memory` is; *block: the file system's preferred size of a block, that of
 * a huge page on hugetlbfs. */
void window_identify(const struct window *window, const unsigned char *memory, uint64_t *dev,
                     uint64_t *ino, uint64_t *offset, uint64_t *block);

#endif
