/*
 * How clients reach the core: the transport, what readers of it answer or carry out in Python, and
 * the calls that a seccomp filter makes us hear of. The rules of iommufs.h hold here too.
 */
#ifndef IOFS_SERVE_H
#define IOFS_SERVE_H

#include "iommufs.h"

/* ---- transport: /dev/fuse ---------------------------------------------------------------------
 *
 * Owns the device. Readers take turns: the one whose turn it is takes a request, answers it if it
 * can alone, keeps an ioctl for Python's dispatcher, and queues everything else for libfuse, whose
 * session (pyfuse3's) reads our queue as if it were the device. One mount for each process.
 */
struct iofs_ioctl {
  uint64_t unique; /* names the request in the answer */
  uint64_t nodeid, fh;
  uint64_t arg; /* the pointer, as a number */
  uint32_t cmd;
  uint32_t uid, gid;
  int32_t tid;         /* thread id of the caller */
  uint32_t compat;     /* 1: a 32-bit caller */
  uint32_t prefetched; /* bytes of `payload` read at arg, at most to the end of its page */
  uint8_t payload[128];
  uint64_t secret_at; /* 0, or where `secret` was read in the caller's memory, with the payload */
  uint8_t secret[16];  /* IOFS_SECRET */
};

/* Mount on `path`, make the queue and start reading. pyfuse3.init() joins in after this. */
int iofs_transport_mount(const char *path);
/* Likewise with a /dev/fuse that is mounted there already; takes it over, also if it fails. */
int iofs_transport_adopt(const char *path, int device);
/* An eventfd, readable while there may be a next ioctl, or a caller was signalled. */
int iofs_transport_ioctl_fd(void);
/* 1: written; 0: none. An ioctl comes out when every RELEASE that arrived before it is answered. */
int iofs_transport_next_ioctl(struct iofs_ioctl *out);
/* The unique of an ioctl in Python's hands whose caller dies of a signal; 0: none. A signal that it
 * survives lets it wait on, as Linux does. Nobody hears of its death later: as long as there are
 * callers that were signalled, look again. */
uint64_t iofs_transport_next_dying(size_t *n_signalled);
/* result: the ioctl's, or -errno. ENOENT: nobody waits for this answer. */
int iofs_transport_answer_ioctl(uint64_t unique, int32_t result);

/* From now on an open of this node is answered with a backing file: mmap goes there. fd stays the
 * caller's. EOPNOTSUPP without passthrough. */
int iofs_transport_set_backing(uint64_t nodeid, int fd);
void iofs_transport_drop_backing(uint64_t nodeid); /* the node is no more */
/* Known once the kernel has introduced itself, with the first request. */
int iofs_transport_has_passthrough(void);
/* Where the right to that is missing, mmap of a file of ours maps its page cache (keeper.c). */
int iofs_transport_has_page_cache(void);
/* The pages of a node come from fd, in n parts (offset, length; 16 at most) that are memory. Then
 * this process maps the node itself where it has fd mapped: open() and remap(). */
int iofs_transport_share(uint64_t nodeid, int fd, const uint64_t (*parts)[2], size_t n);
int iofs_transport_remap(void *address, size_t length, int fd, uint64_t offset);
void iofs_transport_without_passthrough(int wanted); /* for tests, before mounting */

/*
 * Requests to our own mount, made by a thread that can afford to wait for ourselves (side.c); for
 * every other thread of this process even fstat() of such a file is forbidden.
 *
 * resolve: which open file of ours descriptor fd of thread tid's process is: its fh. EBADF; ENOTTY
 * if it is none of ours. open: a descriptor, read-write, of a path below the mount. It asks
 * pyfuse3, so the thread that calls it must not be the one that serves.
 */
int iofs_transport_resolve(int tid, int fd, uint64_t *fh);
int iofs_transport_open(const char *path, int flags); /* O_RDWR, …; for remap() O_NOATIME, too */

/* RELEASEs that arrived since the mount, and how many of them are answered. */
void iofs_transport_releases(uint64_t *arrived, uint64_t *answered);

/* For tests: hand over to libfuse as where it allows a session no input and output of its own. */
void iofs_transport_without_custom_io(int wanted);

/* Unmount, lazily, and stop reading: clients get ENOTCONN or ECONNABORTED from here on. */
void iofs_transport_unmount(void);

/* ---- fast: calls that a reader of the transport finishes without Python ------------------------
 *
 * Python says here what it knows of an open file, and takes it back before it is no longer so. What
 * then is the plain case of a hot call, and goes well, a reader answers; all else comes to Python as
 * it always does, so that what a call means stands there. Nothing said: everything comes. ENOMEM
 * means that nothing is said. When a function that takes something back returns, no reader uses it.
 */
struct iofs_fast;

struct iofs_fast *iofs_fast_new(void); /* of an open file, or several that are one; NULL: ENOMEM */
void iofs_fast_free(struct iofs_fast *fast); /* takes back everything */
int iofs_fast_add_file(struct iofs_fast *fast, uint64_t fh);
void iofs_fast_remove_file(uint64_t fh);

/* Of an iommufd. The address space with an id, NULL to take it back, after which a reader may still
 * be at work on it, and keeps it for as long. */
int iofs_fast_set_iopt(struct iofs_fast *fast, uint32_t id, struct iofs_iopt *iopt);
/* Likewise that of VFIO's container. */
void iofs_fast_set_compat(struct iofs_fast *fast, struct iofs_iopt *iopt);
/* What a process maps is of this address space, for as long as it runs in it. */
int iofs_fast_add_source(struct iofs_fast *fast, int tgid, struct iofs_mm *mm);
void iofs_fast_remove_source(struct iofs_fast *fast, int tgid);
void iofs_fast_set_charge_mode(struct iofs_fast *fast, uint32_t mode); /* without CAP_IPC_LOCK */

/* Of a device. What GET_INFO, GET_REGION_INFO or GET_IRQ_INFO answers for an index, in place of what
 * it answered before: a structure that begins with argsz, and the chain of capabilities behind it;
 * cap_at: where the structure says where the chain begins, 0 if it does not. */
int iofs_fast_add_answer(struct iofs_fast *fast, uint32_t cmd, uint32_t index, const void *bytes,
                         uint32_t length, const void *chain, uint32_t chain_length,
                         uint32_t cap_at);
/* SET_IRQS rings eventfd n of an index, -1 none, which stays open meanwhile. */
int iofs_fast_set_triggers(struct iofs_fast *fast, uint32_t index, const int32_t *fds, uint32_t n);
/* What reading a part of the file gives: own[i] where a bit of mask[i] is 0, kept[i] where it is 1,
 * own alone without a mask. All are aligned to eight bytes and stay until the part is withdrawn;
 * whoever changes them changes what belongs together by one store. IOFS_WINDOW_ENDS: a read that goes
 * on past it ends with it. IOFS_WINDOW_MEMORY: only while iofs_fast_set_memory() says so, at first
 * not. One of each position. */
enum iofs_window_flags { IOFS_WINDOW_ENDS = 1, IOFS_WINDOW_MEMORY = 2 };
int iofs_fast_add_window(struct iofs_fast *fast, uint64_t position, uint64_t length,
                         uint32_t flags, const void *own, const void *kept, const void *mask);
void iofs_fast_set_memory(struct iofs_fast *fast, int enabled);
/* What a reader answers: how many bytes, IOFS_MAX_FAST_READ at most; 0: it asks Python. */
#define IOFS_MAX_FAST_READ 4096
size_t iofs_fast_read(struct iofs_fast *fast, uint64_t position, size_t size, void *out);
void iofs_fast_withdraw(struct iofs_fast *fast); /* all of a device */

/* Off: everything goes to Python. On at the beginning. */
void iofs_fast_enable(int enabled);

/* Requests since the process began, by who answered them. */
struct iofs_fast_counts {
  uint64_t ioctls_by_readers, ioctls_by_python;
  uint64_t ioctls_handed_over; /* of those by Python: to the event loop, from the start */
  uint64_t reads_by_readers, reads_by_python;
  uint64_t others; /* all that pyfuse3 answers, those reads among it */
};
void iofs_fast_counts(struct iofs_fast_counts *out);

/* ---- visits: ioctls that a reader carries out in Python -----------------------------------------
 *
 * To wake the event loop for an ioctl takes longer than to answer it; so a reader runs the handler,
 * while the loop sleeps. The Python that serves clients is made for one thread at a time: that one has
 * the baton. The loop's thread has it, but from give, before it sleeps, to take. Order: the baton, then
 * the GIL; nobody waits for a client's memory, or for a request to our own mount, with either.
 *
 * A step runs a handler until it needs something: it returns a job for the reader to run, after which
 * the next step comes, or NULL, when the ioctl is answered or will be by the loop. begin: an ioctl has
 * come; go_on: its job is done, and nobody has waited for it or freed it meanwhile.
 */
typedef struct iofs_job *iofs_visit_begin(const struct iofs_ioctl *ioctl);
typedef struct iofs_job *iofs_visit_go_on(uint64_t unique);

/* Both on the loop's thread. It has the baton from open on; close wants it, and there is no step
 * after that. */
void iofs_visits_open(iofs_visit_begin *begin, iofs_visit_go_on *go_on);
void iofs_visits_close(void);

/* WAITED_FOR: a reader has it still, after a tenth of a second. LENT: see below. */
enum iofs_baton { IOFS_BATON_TAKEN, IOFS_BATON_LENT, IOFS_BATON_WAITED_FOR };
void iofs_baton_give(void);
int iofs_baton_take(void);

/* For what only the loop's thread may do. A step lends it the baton: take says so, the thread does it
 * and returns the baton, upon which lend returns. Who lends wakes the loop. */
void iofs_baton_lend(void);
void iofs_baton_return(void);

/* ---- notices: calls that no FUSE server can answer ----------------------------------------------
 *
 * No FUSE server can give its caller a descriptor, nor say that a file of its own is a character
 * device; nor does it hear of mmap(), lseek(), or of a read() or write() of no bytes. Whoever listens
 * to a seccomp filter can, and does. The filter, installed once in the process that becomes the client
 * and inherited by all it starts, makes the callers of these wait, and of the given ioctls, and its
 * listener hears of it. Every other system call costs what the filter costs, or nothing where the
 * kernel knows the filter's answer.
 */
enum iofs_notice_call {
  IOFS_NOTICE_IOCTL,
  IOFS_NOTICE_READ,    /* these four of no bytes */
  IOFS_NOTICE_PREAD,
  IOFS_NOTICE_WRITE,
  IOFS_NOTICE_PWRITE,
  IOFS_NOTICE_MMAP,    /* not anonymous, and not as a dynamic loader maps a library */
  IOFS_NOTICE_LSEEK,
  IOFS_NOTICE_LLSEEK,  /* of 32 bits: fd, high, low, result, whence */
  IOFS_NOTICE_FSTAT,
  IOFS_NOTICE_FSTATAT, /* these two with AT_EMPTY_PATH */
  IOFS_NOTICE_STATX
};

struct iofs_bpf { /* one instruction, laid out as Linux does */
  uint16_t code;
  uint8_t jt, jf;
  uint32_t k;
};

struct iofs_notice {
  uint64_t id; /* names the notice in the answer */
  uint64_t args[6];
  uint64_t ino;    /* st_ino of the file, one of ours */
  int32_t tid;     /* thread id of the caller */
  int32_t fd;
  uint32_t call;   /* enum iofs_notice_call */
  uint32_t compat; /* 1: a 32-bit or x32 system call */
  uint32_t i386;   /* 1: one of i386 */
};

/* The filter for n requests (64 at most): the number of its instructions. E2BIG. */
int iofs_seccomp_program(const uint32_t *requests, size_t n, struct iofs_bpf *out, size_t size);
/* Put it on this thread and what it starts from now on: the listener, close-on-exec. EACCES: needs
 * CAP_SYS_ADMIN; EBUSY: an outer filter has a listener, Linux allows one; EINVAL, ENOMEM. */
int iofs_seccomp_install(const uint32_t *requests, size_t n);

/*
 * A thread that takes the notices of a listener, which stays the caller's, and lets the kernel
 * carry on where the file is not of our mount. The others come out of next; forget them when they
 * are answered. ledger: two words of memory for who answers when this process is killed: the oldest
 * notice that is taken and not answered, or 0, and the one that was taken last.
 */
struct iofs_notifier;
int iofs_notifier_start(int listener, uint64_t *ledger, struct iofs_notifier **out);
int iofs_notifier_fd(const struct iofs_notifier *n); /* readable while there may be a next */
int iofs_notifier_next(struct iofs_notifier *n, struct iofs_notice *out); /* 1: written; 0: none */
void iofs_notifier_forget(struct iofs_notifier *n, uint64_t id);
/* Frees it; who still waits is left to whoever has the listener. */
void iofs_notifier_stop(struct iofs_notifier *n);

/* For whoever has no such thread. 1: written, ino apart; 0: none after all. May wait unless the
 * listener polls readable. */
int iofs_notice_receive(int listener, struct iofs_notice *out);
/* 1 while the caller waits: what is known of its thread id by then was true of it. */
int iofs_notice_is_valid(int listener, uint64_t id);
/* The three answers. ENOENT: the caller was killed. Continue: the kernel carries out the call. */
int iofs_notice_continue(int listener, uint64_t id);
int iofs_notice_answer(int listener, uint64_t id, int64_t result); /* or -errno */
/* Install a duplicate of fd in the caller, whose ioctl is still to be answered: its number there.
 * flags: O_CLOEXEC or 0. EMFILE: its RLIMIT_NOFILE. */
int iofs_notice_add_fd(int listener, uint64_t id, int fd, int flags);

/* How a node shall look: st_mode's type, the device's number; its owner as the caller sees it. */
struct iofs_look {
  uint32_t type, major, minor, uid, gid;
  uint64_t size;
};

/* The structure that a call of the stat family shall find, 256 bytes at most: its length. EBADF. */
int iofs_notice_stat(const struct iofs_notice *notice, const struct iofs_look *look, uint8_t *out);

/* ---- looks by a path --------------------------------------------------------------------------
 *
 * A node has two inodes, whose numbers differ in this bit. To clients both have the same st_ino,
 * without it; the kernel hears nothing of an inode with it when it reads a directory.
 */
#define IOFS_LOOK (1ull << 62)
/* An attribute that can be written has this one: a write may wait, others write meanwhile, and a
 * caller that is killed waits no longer. */
#define IOFS_ATTRIBUTE (1ull << 61)

/* Whether a thread that waits for us looks up a path for its attributes, and not to open it. */
int iofs_client_looks_at_path(int tid);
/* Whether it is in an ioctl(): the kernel opens a file anew for those about its attributes. */
int iofs_client_is_in_ioctl(int tid);

#endif
