/*
 * The few structures of the FUSE protocol that the transport reads or patches. <linux/fuse.h> of
 * older systems lacks what passthrough needs (Linux 6.9), so that part is stated here.
 */
#ifndef IOFS_FUSE_WIRE_H
#define IOFS_FUSE_WIRE_H

#include <linux/fuse.h>
#include <sys/ioctl.h>

/* Bits of the 64-bit init flags, whose upper half is flags2. */
#define IOFS_FUSE_INIT_EXT (1u << 30)
#define IOFS_FUSE_PASSTHROUGH_2 (1u << (37 - 32))
#define IOFS_FUSE_DIRECT_IO_ALLOW_MMAP_2 (1u << (36 - 32))
#define IOFS_FUSE_SPLICE_FLAGS (FUSE_SPLICE_WRITE | FUSE_SPLICE_MOVE | FUSE_SPLICE_READ)

#define IOFS_FOPEN_PARALLEL_DIRECT_WRITES (1u << 6)
#define IOFS_FOPEN_PASSTHROUGH (1u << 7)

/* Answer to INIT, as of protocol 7.40. */
struct iofs_init_out {
  uint32_t major, minor, max_readahead, flags;
  uint16_t max_background, congestion_threshold;
  uint32_t max_write, time_gran;
  uint16_t max_pages, map_alignment;
  uint32_t flags2, max_stack_depth;
  uint16_t request_timeout, unused[11];
};
_Static_assert(sizeof(struct iofs_init_out) == 64, "size of the answer to INIT");

/* Answer to OPEN: the padding became backing_id. */
struct iofs_open_out {
  uint64_t fh;
  uint32_t open_flags;
  int32_t backing_id;
};
_Static_assert(sizeof(struct iofs_open_out) == 16, "size of the answer to OPEN");

struct iofs_backing_map {
  int32_t fd;
  uint32_t flags;
  uint64_t padding;
};
#define IOFS_BACKING_OPEN _IOW(229, 1, struct iofs_backing_map)
#define IOFS_BACKING_CLOSE _IOW(229, 2, uint32_t)

#endif
