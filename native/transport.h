/* What transport.c and session.c share; the rest is in iommufs.h. */
#ifndef IOFS_TRANSPORT_H
#define IOFS_TRANSPORT_H

#include <linux/ioctl.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* Asked by ourselves of a duplicate of a client's file: which fh is it? Carries its answer, so the
 * kernel passes it on although our files are regular ones. */
#define IOFS_IDENTIFY _IOR('~', 0x49, uint64_t)

extern _Atomic uint64_t iofs_live_requests;

/* libfuse's session reads requests from here and writes its answers there; fd is an eventfd. */
int iofs_transport_session_fd(void);
ssize_t iofs_session_read(int fd, void *buf, size_t size, void *unused);
ssize_t iofs_session_writev(int fd, struct iovec *iov, int count, void *unused);

#endif
