/* How a node of ours looks to the stat family: as the character device that it stands for. */
#define _GNU_SOURCE
#include "notice.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "transport.h"

/* What statx() of the C library has, as Linux lays it out. */
_Static_assert(sizeof(struct statx) == 256, "Linux' struct statx");

#if defined(__x86_64__)
_Static_assert(sizeof(struct stat) == 144, "Linux' struct stat, which fills the C library's");

struct stat64_i386 { /* Linux' struct stat64 of i386 */
  uint64_t dev;
  uint8_t pad0[4];
  uint32_t ino32, mode, nlink, uid, gid;
  uint64_t rdev;
  uint8_t pad1[4];
  int64_t size;
  uint32_t blksize;
  uint64_t blocks;
  uint32_t atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns;
  uint64_t ino;
} __attribute__((packed, aligned(4)));
_Static_assert(sizeof(struct stat64_i386) == 96, "Linux' struct stat64 of i386");

static size_t fill_i386(const struct statx *stx, uint8_t *out) {
  struct stat64_i386 st = {
    .dev = makedev(stx->stx_dev_major, stx->stx_dev_minor),
    .ino32 = (uint32_t)stx->stx_ino,
    .mode = stx->stx_mode,
    .nlink = stx->stx_nlink,
    .uid = stx->stx_uid,
    .gid = stx->stx_gid,
    .rdev = makedev(stx->stx_rdev_major, stx->stx_rdev_minor),
    .size = (int64_t)stx->stx_size,
    .blksize = stx->stx_blksize,
    .blocks = stx->stx_blocks,
    .atime = (uint32_t)stx->stx_atime.tv_sec,
    .atime_ns = stx->stx_atime.tv_nsec,
    .mtime = (uint32_t)stx->stx_mtime.tv_sec,
    .mtime_ns = stx->stx_mtime.tv_nsec,
    .ctime = (uint32_t)stx->stx_ctime.tv_sec,
    .ctime_ns = stx->stx_ctime.tv_nsec,
    .ino = stx->stx_ino,
  };
  memcpy(out, &st, sizeof st);
  return sizeof st;
}
#else
static size_t fill_i386(const struct statx *stx, uint8_t *out) {
  (void)stx;
  (void)out;
  return 0;
}
#endif

static size_t fill_native(const struct statx *stx, uint8_t *out) {
  struct stat st = {0};
  st.st_dev = makedev(stx->stx_dev_major, stx->stx_dev_minor);
  st.st_ino = stx->stx_ino;
  st.st_mode = stx->stx_mode;
  st.st_nlink = stx->stx_nlink;
  st.st_uid = stx->stx_uid;
  st.st_gid = stx->stx_gid;
  st.st_rdev = makedev(stx->stx_rdev_major, stx->stx_rdev_minor);
  st.st_size = (off_t)stx->stx_size;
  st.st_blksize = stx->stx_blksize;
  st.st_blocks = (blkcnt_t)stx->stx_blocks;
  st.st_atim = (struct timespec){stx->stx_atime.tv_sec, stx->stx_atime.tv_nsec};
  st.st_mtim = (struct timespec){stx->stx_mtime.tv_sec, stx->stx_mtime.tv_nsec};
  st.st_ctim = (struct timespec){stx->stx_ctime.tv_sec, stx->stx_ctime.tv_nsec};
  memcpy(out, &st, sizeof st);
  return sizeof st;
}

int iofs_notice_stat(const struct iofs_notice *notice, const struct iofs_look *look, uint8_t *out) {
  struct statx stx;
  /* What belongs to the mount and the inode is as the kernel has it. */
  uint32_t mask = STATX_BASIC_STATS;
  if (notice->call == IOFS_NOTICE_STATX)
    mask |= (uint32_t)notice->args[3];
  int r = iofs_notice_statx(notice, mask, &stx);
  if (r < 0)
    return r;
  if (stx.stx_ino != notice->ino ||
      makedev(stx.stx_dev_major, stx.stx_dev_minor) != iofs_transport_device())
    return -EBADF; /* another thread of the client has closed it */
  stx.stx_mode = look->type | (stx.stx_mode & 07777);
  stx.stx_rdev_major = look->major;
  stx.stx_rdev_minor = look->minor;
  stx.stx_uid = look->uid;
  stx.stx_gid = look->gid;
  stx.stx_size = look->size;
  stx.stx_blocks = look->size / 512;
  if (notice->call != IOFS_NOTICE_STATX)
    return (int)(notice->i386 ? fill_i386(&stx, out) : fill_native(&stx, out));
  memcpy(out, &stx, sizeof stx);
  return sizeof stx;
}
