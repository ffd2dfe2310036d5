/*
 * What libfuse 3.14 does not know, put into its answers about single nodes: backing files, writes
 * side by side, numbers of inodes without the marks that only we understand (serve.h).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "fuse_wire.h"
#include "serve.h"
#include "transport.h"

#define MARKS (IOFS_LOOK | IOFS_ATTRIBUTE)

struct backing {
  struct backing *next;
  uint64_t nodeid;
  int32_t id;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct backing *backings;

static void patch_open(struct iofs_open_out *out, uint64_t nodeid) {
  if (nodeid & IOFS_ATTRIBUTE) /* one that waits keeps no other from writing */
    out->open_flags |= IOFS_FOPEN_PARALLEL_DIRECT_WRITES;
  pthread_mutex_lock(&lock);
  for (struct backing *backing = backings; backing; backing = backing->next)
    if (backing->nodeid == nodeid) {
      out->open_flags = FOPEN_DIRECT_IO | IOFS_FOPEN_PASSTHROUGH;
      out->backing_id = backing->id;
      break;
    }
  pthread_mutex_unlock(&lock);
}

/* An inode that only has a look of another is not worth one: a type is all that a directory tells
 * of its entries. */
static void patch_directory(uint8_t *bytes, size_t length) {
  for (size_t at = 0; at + FUSE_NAME_OFFSET_DIRENTPLUS <= length;) {
    struct fuse_direntplus *entry = (void *)(bytes + at);
    if (entry->entry_out.nodeid & IOFS_LOOK)
      entry->entry_out.nodeid = 0;
    entry->entry_out.attr.ino &= ~MARKS;
    entry->dirent.ino &= ~MARKS;
    at += FUSE_DIRENTPLUS_SIZE(entry);
  }
}

/* What is in a body of another size than this, we have not asked for. */
void iofs_patch(uint32_t opcode, uint64_t nodeid, void *body, size_t length) {
  if (opcode == FUSE_OPEN && length == sizeof(struct iofs_open_out))
    patch_open(body, nodeid);
  else if (opcode == FUSE_LOOKUP && length == sizeof(struct fuse_entry_out))
    ((struct fuse_entry_out *)body)->attr.ino &= ~MARKS;
  else if ((opcode == FUSE_GETATTR || opcode == FUSE_SETATTR) &&
           length == sizeof(struct fuse_attr_out))
    ((struct fuse_attr_out *)body)->attr.ino &= ~MARKS;
  else if (opcode == FUSE_READDIRPLUS)
    patch_directory(body, length);
}

int iofs_patch_set_backing(int fuse_fd, uint64_t nodeid, int fd) {
  struct iofs_backing_map map = {.fd = fd};
  struct backing *backing = malloc(sizeof *backing);
  if (!backing)
    return -ENOMEM;
  int id = ioctl(fuse_fd, IOFS_BACKING_OPEN, &map);
  if (id < 0) {
    id = -errno;
    free(backing);
    return id;
  }
  pthread_mutex_lock(&lock);
  *backing = (struct backing){backings, nodeid, id};
  backings = backing;
  pthread_mutex_unlock(&lock);
  return 0;
}

void iofs_patch_drop_backing(int fuse_fd, uint64_t nodeid) {
  struct backing *found = NULL;
  pthread_mutex_lock(&lock);
  for (struct backing **at = &backings; *at && !found; at = found ? at : &(*at)->next)
    if ((*at)->nodeid == nodeid) {
      found = *at;
      *at = found->next;
    }
  pthread_mutex_unlock(&lock);
  if (found)
    ioctl(fuse_fd, IOFS_BACKING_CLOSE, &found->id);
  free(found);
}

void iofs_patch_drop_all(void) {
  pthread_mutex_lock(&lock);
  while (backings) {
    struct backing *backing = backings;
    backings = backing->next;
    free(backing);
  }
  pthread_mutex_unlock(&lock);
}
