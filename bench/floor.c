/*
 * The floor: the least that a FUSE server in userspace can do to answer an ioctl with a payload,
 * or a read.
 *
 *     floor DIR
 *
 * mounts a filesystem with one file, DIR/file. Its ioctls read the payload from the caller's memory
 * by process_vm_readv(), write the same bytes back, and return 0; reads give zeros. It says "ready"
 * when it answers.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define FILE_INODE 2
#define IOMMU_IOAS_MAP 0x3b85 /* its payload has 40 bytes; those of the others here have 24 */

static void fill(fuse_ino_t inode, struct stat *stat) {
  *stat = (struct stat){.st_ino = inode, .st_nlink = 1};
  stat->st_mode = inode == FILE_INODE ? S_IFREG | 0600 : S_IFDIR | 0700;
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name) {
  struct fuse_entry_param entry = {.ino = FILE_INODE, .attr_timeout = 3600, .entry_timeout = 3600};
  if (parent != FUSE_ROOT_ID || strcmp(name, "file")) {
    fuse_reply_err(request, ENOENT);
    return;
  }
  fill(FILE_INODE, &entry.attr);
  fuse_reply_entry(request, &entry);
}

static void on_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info) {
  struct stat stat;
  (void)info;
  fill(inode, &stat);
  fuse_reply_attr(request, &stat, 3600);
}

static void on_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info) {
  (void)inode;
  info->direct_io = 1;
  fuse_reply_open(request, info);
}

static void on_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
                    struct fuse_file_info *info) {
  static const char zeros[4096];
  (void)inode, (void)offset, (void)info;
  fuse_reply_buf(request, zeros, size < sizeof zeros ? size : sizeof zeros);
}

static void on_ioctl(fuse_req_t request, fuse_ino_t inode, unsigned cmd, void *argument,
                     struct fuse_file_info *info, unsigned flags, const void *in, size_t in_size,
                     size_t out_size) {
  char payload[40];
  struct iovec mine = {payload, cmd == IOMMU_IOAS_MAP ? 40 : 24}, theirs = {argument, mine.iov_len};
  pid_t caller = fuse_req_ctx(request)->pid;
  ssize_t length = (ssize_t)mine.iov_len;
  (void)inode, (void)info, (void)flags, (void)in, (void)in_size, (void)out_size;
  if (process_vm_readv(caller, &mine, 1, &theirs, 1, 0) != length ||
      process_vm_writev(caller, &mine, 1, &theirs, 1, 0) != length)
    fuse_reply_err(request, EFAULT);
  else
    fuse_reply_ioctl(request, 0, NULL, 0);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = on_lookup,
    .getattr = on_getattr,
    .open = on_open,
    .read = on_read,
    .ioctl = on_ioctl,
};

int main(int argc, char **argv) {
  struct fuse_args arguments = FUSE_ARGS_INIT(0, NULL);
  if (argc != 2 || fuse_opt_add_arg(&arguments, argv[0]))
    return 2;
  struct fuse_session *session =
      fuse_session_new(&arguments, &operations, sizeof operations, NULL);
  if (!session || fuse_set_signal_handlers(session) || fuse_session_mount(session, argv[1]))
    return 1;
  puts("ready");
  fflush(stdout);
  int result = fuse_session_loop(session);
  fuse_session_unmount(session);
  fuse_remove_signal_handlers(session);
  fuse_session_destroy(session);
  fuse_opt_free_args(&arguments);
  return result < 0; /* a signal that ends it gives its number */
}
