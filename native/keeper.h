/* What transport.c needs of keeper.c. */
#ifndef IOFS_KEEPER_H
#define IOFS_KEEPER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What a request and an answer may have besides their headers: one must fit into a message. */
#define KEEPER_MAX_DATA (128u << 10)

/* The fh of an open of ours for the memory of a node; no other is this large. */
#define KEEPER_FH UINT64_MAX

/* Start the process, which takes /dev/fuse over: fuse_fd is closed here. *socket stands for it from
 * now on: each message is a request or an answer. Its end ends the process. -errno */
int keeper_start(int fuse_fd, int *socket, pid_t *pid);
/* Tell it which file has the memory of a node, and which n parts (offset, length) are memory. */
int keeper_share(int socket, uint64_t nodeid, int fd, const uint64_t (*parts)[2], size_t n);
/* Wait for its end, once the socket is closed. */
void keeper_join(pid_t pid);

#endif
