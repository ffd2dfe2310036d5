/* What transport.c and session.c share; the rest is in serve.h. */
#ifndef IOFS_TRANSPORT_H
#define IOFS_TRANSPORT_H

#include <linux/ioctl.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "serve.h"

/* Asked by ourselves of a duplicate of a client's file: which fh is it? Carries its answer, so the
 * kernel passes it on although our files are regular ones. */
#define IOFS_IDENTIFY _IOR('~', 0x49, uint64_t)

/* Room for the largest request: what libfuse and pyfuse3 let a client write at once, and headers. */
#define IOFS_MAX_REQUEST ((1u << 20) + 8192)

extern _Atomic uint64_t iofs_live_requests;

/* libfuse's session reads requests from here and writes its answers there; fd is an eventfd. */
int iofs_transport_session_fd(void);
ssize_t iofs_session_read(int fd, void *buf, size_t size, void *unused);
ssize_t iofs_session_writev(int fd, struct iovec *iov, int count, void *unused);

/* Answer a request by its unique: 0 or a negative errno, and what follows the header. */
int iofs_answer(uint64_t unique, int error, const void *body, size_t length);

dev_t iofs_transport_device(void); /* st_dev of the mount */

/* mount.c: 0 or -errno; whether a backing file may be passed through. */
int mount_device(int fuse_fd, const char *path);
int mount_may_pass_through(void);

/* side.c: requests to our own mount. */
int iofs_side_start(void);
void iofs_side_refuse(void); /* who asks from now on gets ENOTCONN */
void iofs_side_stop(void);

/* patch.c: what goes into libfuse's answers about a node. */
void iofs_patch(uint32_t opcode, uint64_t nodeid, void *body, size_t length);
int iofs_patch_set_backing(int fuse_fd, uint64_t nodeid, int fd);
void iofs_patch_drop_backing(int fuse_fd, uint64_t nodeid);
void iofs_patch_drop_all(void);

/* ioctls.c: the ioctls that wait. A reader holds the one it is working on. */
struct pending;
int iofs_ioctls_open(void);
void iofs_ioctls_close(void);
struct pending *iofs_ioctls_add(uint64_t unique, int tid); /* NULL: ENOMEM */
/* Its payload is read: Python may have it. */
void iofs_ioctls_fetched(struct pending *pending, const struct iofs_ioctl *ioctl);
/* The reader begins it in Python: 1, or 0 if its caller does not wait any more. It is not to be
 * touched by the reader after this. */
int iofs_ioctls_take(struct pending *pending);
/* The reader has carried it out: 1 if its caller still waits for the answer. */
int iofs_ioctls_finish(struct pending *pending);
int iofs_ioctls_is_due(const struct pending *pending); /* each RELEASE before it is answered */
int iofs_ioctls_remove(uint64_t unique); /* 1 if it was there */
void iofs_ioctls_signalled(uint64_t unique); /* its caller was */
/* A write that pyfuse3 carries out: 1 if it is remembered until iofs_ioctls_remove(). A caller that
 * dies meanwhile has its answer, and it is not there any more. */
int iofs_ioctls_lend(uint64_t unique, int tid);

/* visit.c: 1 if Python has it now; 0: it is to be handed over. */
struct reader;
int visit(struct reader *me, struct pending *pending, const struct iofs_ioctl *ioctl);

void iofs_ioctls_release_arrived(void);
void iofs_ioctls_release_answered(void);
int iofs_ioctls_releases_are_answered(void); /* all that have arrived */

#endif
