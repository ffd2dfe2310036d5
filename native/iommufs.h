/*
 * The native core, as Python and the transport see it; how clients reach it is in serve.h. Python
 * sees these two headers and no other (native/build_ffi.py feeds them to cffi, so what stands in them
 * stays plain C without macros that take arguments).
 *
 * Words: ranges are closed, [start, last]; bytes are `length`, counts `n…`, positions in pages
 * `index`. Functions return 0 or a count on success and -errno on failure; outputs come last and
 * are written on success only, unless their text says otherwise. Nothing here knows object ids,
 * ioctl numbers or files of ours: those live in Python.
 *
 * Threads: every function may be called from any thread. One mutex for each iopt; order of locks:
 * access, iopt, domain, pages. Nothing calls back into Python but a visit (serve.h).
 */
#ifndef IOMMUFS_H
#define IOMMUFS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What lives now. A test of leaks compares two of these; every field returns to its old value. */
struct iofs_stats {
  uint64_t mms;          /* open client address spaces */
  uint64_t users;        /* users with a locked-memory counter that is not 0 */
  uint64_t iopts;
  uint64_t areas;
  uint64_t pages;        /* pages objects */
  uint64_t pinned_pages; /* 4 KiB pages pinned now, counted once for each pages object */
  uint64_t domains;
  uint64_t table_bytes;  /* page tables of all domains */
  uint64_t accesses;
  uint64_t source_maps;  /* windows of client memory mapped into this process */
  uint64_t jobs;         /* jobs not freed yet */
  uint64_t requests;     /* FUSE requests taken from the kernel and not answered yet */
};

void iofs_statistics(struct iofs_stats *out);

/* For tests: make the nth allocation of the core from now on fail, once; 0: none. Returns what was
 * left of the countdown before: 0 if it has fired. */
uint64_t iofs_fail_allocation(uint64_t n);

/* ---- mm: the address space of a client process ------------------------------------------------
 *
 * A handle keeps the very address space that the process had when the handle was made, through
 * exec and exit: an access after that fails with EFAULT and never reaches another process.
 */
struct iofs_mm;

/* What exec leaves in the memory of a program, and nothing else has there: IOFS_SECRET bytes at an
 * address, 0: nowhere. To read it is the caller's, as that may keep one waiting. */
enum { IOFS_SECRET = 16 };
uint64_t iofs_secret_at(int tid);
uint64_t iofs_mm_secret_at(const struct iofs_mm *mm);

/* That of a thread, which waits for us, of a process; `secret` is what lies there, NULL: unknown.
 * Processes that share their memory (vfork, CLONE_VM) get the same handle. ESRCH, EPERM, ENOMEM. */
int iofs_mm_open(int tgid, int tid, const void *secret, struct iofs_mm **out);
int iofs_mm_open_process(int pid, struct iofs_mm **out); /* for tests: reads the secret itself */
void iofs_mm_get(struct iofs_mm *mm);
void iofs_mm_put(struct iofs_mm *mm);
int iofs_mm_alive(const struct iofs_mm *mm); /* 1 while any process runs in it, else 0 */

/* 1 if a process that has opened it has not ended, and somebody runs in it; 1 if it is that process
 * itself, which has not called exec: then its secret is the same still. */
int iofs_mm_has(struct iofs_mm *mm, int tgid);
int iofs_mm_runs(struct iofs_mm *mm, int tgid, const void *secret);

/* Mappings of files on this device are no memory: pinning them is EFAULT. For our own mount, whose
 * files are BARs. At most 64 devices. */
void iofs_mm_forbid_device(uint32_t major, uint32_t minor);

/* ---- accounting -------------------------------------------------------------------------------
 *
 * Whom the pages of a mapping are charged to, while they are pinned; fixed when it is made. The
 * limit is RLIMIT_MEMLOCK; NONE is for callers with CAP_IPC_LOCK.
 */
enum iofs_charge_mode { IOFS_CHARGE_NONE, IOFS_CHARGE_USER, IOFS_CHARGE_MM };

struct iofs_charge {
  uint32_t mode; /* enum iofs_charge_mode */
  uint32_t uid;  /* of the caller; the counter of mode USER */
  int32_t tgid;  /* whose RLIMIT_MEMLOCK counts */
};

/* ---- iopt: the I/O address space behind an IOAS ---------------------------------------------- */
struct iofs_iopt;
struct iofs_domain;
struct iofs_piece_list;
struct iofs_access;

enum iofs_prot { IOFS_READ = 1, IOFS_WRITE = 2 };

struct iofs_range {
  uint64_t start, last;
};

/* Who owns a reserved range: removed together by iofs_iopt_remove_reserved(owner). */
typedef uint64_t iofs_owner;

struct iofs_iopt *iofs_iopt_new(void); /* NULL: ENOMEM */
void iofs_iopt_free(struct iofs_iopt *iopt); /* no domain or access may be left; unmaps all */

/*
 * Map. *iova is used if fixed, else chosen as iopt_alloc_iova() of the kernel does (first fit,
 * aligned to what length and source have in common, up to 2 MiB) and written. Errors in this order:
 * EOVERFLOW  user_va + length, or start + length - 1, passes 2^64 - 1
 * EINVAL     length 0 (of a file: before the overflow) or nearly 2^64
 * EBADF      no such fd
 * EINVAL     length is no multiple of the alignment; so for a fixed IOVA, then EOVERFLOW, EINVAL if
 *            it hits a reserved range, EEXIST an area; an automatic one: EOVERFLOW, EINVAL, ENOSPC
 * EINVAL     the source's place in its page is no multiple of the alignment
 * EFAULT, EINVAL (file), ENOMEM  if there is a domain: it cannot be pinned; EINVAL without a prot
 * fd stays the caller's.
 */
int iofs_iopt_map_user(struct iofs_iopt *iopt, struct iofs_mm *mm, const struct iofs_charge *charge,
                       uint64_t user_va, uint64_t length, uint32_t prot, int fixed, uint64_t *iova);
int iofs_iopt_map_file(struct iofs_iopt *iopt, struct iofs_mm *mm, const struct iofs_charge *charge,
                       int fd, uint64_t start, uint64_t length, uint32_t prot, int fixed,
                       uint64_t *iova);

/*
 * The same for a stand-in of a dma-buf, a memory file that has a name: EINVAL if it is shorter. Its
 * memory is charged to nobody and not for accesses (EINVAL). Revoke: all of it leaves the page
 * tables of this iopt and does not come back, but for what is mapped anew.
 */
int iofs_iopt_map_dmabuf(struct iofs_iopt *iopt, struct iofs_mm *mm, int fd, uint64_t name,
                         uint64_t start, uint64_t length, uint32_t prot, int fixed,
                         uint64_t *iova);
void iofs_iopt_revoke(struct iofs_iopt *iopt, uint64_t name);

/*
 * Copy, in the two halves between which IOAS_COPY looks up its destination: first the pieces of
 * pages behind [iova, iova + length) (EINVAL length 0, EOVERFLOW, ENOENT), which the list keeps
 * alive; then their mapping elsewhere, with the errors of a map from the alignment of length on
 * and EPERM for IOFS_WRITE of pages that were not mapped for writing.
 */
int iofs_iopt_get_pieces(struct iofs_iopt *iopt, uint64_t iova, uint64_t length,
                         struct iofs_piece_list **out);
int iofs_iopt_map_pieces(struct iofs_iopt *iopt, const struct iofs_piece_list *list, uint32_t prot,
                         int fixed, uint64_t *iova);
void iofs_piece_list_free(struct iofs_piece_list *list);

/*
 * Unmap what lies in [iova, iova + length), which may be nothing; not atomic: EINVAL, EOVERFLOW;
 * then for area by area, EBUSY (pinned by an internal access), ENOENT (only a part of it).
 * *unmapped: bytes unmapped, added to, written on failure too. Returns 1 if an access has pins in
 * *notify: tell every external access of the iopt, then call again with the same arguments; a call
 * that again finds the same area pinned counts as one try, EDEADLK after 100.
 */
int iofs_iopt_unmap(struct iofs_iopt *iopt, uint64_t iova, uint64_t length, uint64_t *unmapped,
                    struct iofs_range *notify);
int iofs_iopt_unmap_all(struct iofs_iopt *iopt, uint64_t *unmapped, struct iofs_range *notify);

/*
 * Let another process pay for all that is mapped in n iopts, and be the one that mapped it. The
 * iopts are all of one context, in an order that is the same for every call. EINVAL: something is
 * no mapping of a file; ENOMEM: its limit; nothing has changed then.
 * ESRCH: all is moved, but something was charged, in mode MM, to a process that is gone.
 */
int iofs_iopts_change_process(struct iofs_iopt *const *iopts, size_t n, struct iofs_mm *mm,
                              const struct iofs_charge *charge);

/* The complement of the reserved ranges, ascending. Returns their number, also if greater than n;
 * writes the first n. */
size_t iofs_iopt_holes(struct iofs_iopt *iopt, struct iofs_range *out, size_t n);
uint64_t iofs_iopt_alignment(struct iofs_iopt *iopt);

/* Replace the allowed list. EINVAL: start >= last, or an overlap among themselves; EADDRINUSE: with
 * a reserved range; then the old list stays. */
int iofs_iopt_set_allowed(struct iofs_iopt *iopt, const struct iofs_range *ranges, size_t n);

/* EADDRINUSE if the range meets an area or an allowed range. */
int iofs_iopt_reserve(struct iofs_iopt *iopt, uint64_t start, uint64_t last, iofs_owner owner);
void iofs_iopt_remove_reserved(struct iofs_iopt *iopt, iofs_owner owner);

int iofs_iopt_huge_pages(struct iofs_iopt *iopt); /* 0 or 1 */
/* Disable: EINVAL with a domain and an area, EADDRINUSE if an area is not page aligned. */
int iofs_iopt_set_huge_pages(struct iofs_iopt *iopt, int enabled);
size_t iofs_iopt_n_areas(struct iofs_iopt *iopt);
int iofs_iopt_nth_area(struct iofs_iopt *iopt, size_t n, struct iofs_range *out); /* 0: none */

/* For type1 v1: split the area that holds `iova` so that iova is the last byte of its left part.
 * EBUSY: it is being unmapped; EINVAL: misaligned, pinned by an access, huge pages in a domain. */
int iofs_iopt_cut(struct iofs_iopt *iopt, uint64_t iova);

/* ---- domain: the page table of one HWPT ------------------------------------------------------ */
enum iofs_pt_format { IOFS_PT_VTD, IOFS_PT_AMD, IOFS_PT_MOCK };

struct iofs_domain_config {
  uint64_t aperture_start, aperture_last;
  uint64_t pgsize_bitmap; /* bit n: leaves of 1 << n bytes */
  uint32_t format;        /* enum iofs_pt_format */
};

/* EINVAL: an empty aperture; sizes that are not 512 times each other (MOCK: any) or too small for
 * the format; no such format. ENOMEM. */
int iofs_domain_new(const struct iofs_domain_config *config, struct iofs_domain **out);
void iofs_domain_get(struct iofs_domain *domain);
void iofs_domain_put(struct iofs_domain *domain); /* the last one frees; it is in no iopt then */

/* Fill with all areas and every later map. EINVAL: the smallest page is larger than the CPU's;
 * EADDRINUSE: areas do not fit its pages, or areas or allowed ranges its aperture; EFAULT, EINVAL,
 * ENOMEM: the memory cannot be pinned. On failure nothing changed. */
int iofs_iopt_add_domain(struct iofs_iopt *iopt, struct iofs_domain *domain);
void iofs_iopt_remove_domain(struct iofs_iopt *iopt, struct iofs_domain *domain);

/*
 * Dirty tracking: while it is on, a leaf remembers that it was written through. Switching it on,
 * even again, forgets. Mark: as if a device wrote the byte at iova + n * page_size for each bit n
 * that is set; the number of set bits, also of those where nothing is mapped.
 */
void iofs_domain_set_dirty_tracking(struct iofs_domain *domain, int enabled);
int iofs_domain_tracks_dirty(const struct iofs_domain *domain);
size_t iofs_domain_mark_dirty(struct iofs_domain *domain, uint64_t iova, uint64_t page_size,
                              const uint8_t *bitmap, size_t n_bits);
/* Dirty leaves in [*iova, last], each as far as it lies inside, neighbours as one: their number, n
 * at most. It goes on from *iova, which is 0 when it came to the end or a hole. */
size_t iofs_domain_read_dirty(struct iofs_domain *domain, uint64_t *iova, uint64_t last, int clear,
                              struct iofs_range *out, size_t n);

/* ---- dma: what a device does through a domain ------------------------------------------------ */
enum iofs_dma_reason {
  IOFS_DMA_OK,
  IOFS_DMA_UNMAPPED,
  IOFS_DMA_PERMISSION,
  IOFS_DMA_GONE,     /* the client's memory is no more */
  IOFS_DMA_NO_MASTER, /* the device may not: bus mastering is off. This and the next are not said
                       * here, but by those who have no domain to ask */
  IOFS_DMA_DETACHED,
  IOFS_N_DMA_REASONS
};

struct iofs_dma_fault {
  uint64_t iova;   /* the first byte that could not be translated */
  uint32_t write;  /* 1: the device wanted to write */
  uint32_t reason; /* enum iofs_dma_reason */
};

/* Copy between buf and [iova, iova + length). EFAULT: *fault says why; nothing has moved if it is
 * the table that refuses, what lies before in the client's memory if that is gone. ENOMEM: nothing
 * has moved. May wait for the client's memory: run it in a job. */
int iofs_dma_read(struct iofs_domain *domain, uint64_t iova, void *buf, size_t length,
                  struct iofs_dma_fault *fault);
int iofs_dma_write(struct iofs_domain *domain, uint64_t iova, const void *buf, size_t length,
                   struct iofs_dma_fault *fault);

/* ---- refused: what devices were not allowed to do --------------------------------------------
 *
 * One ledger for each device that does DMA by itself in C. Every refused DMA counts; of each way to
 * be refused (read or write, reason) the first since the last look is kept with its particulars, so
 * a device that runs wild costs no memory.
 */
struct iofs_refused;

struct iofs_refusals {
  uint64_t cookie, n;    /* whose ledger; how many since the last look */
  uint64_t iova, length; /* of the first of them: the byte that was refused, the whole request */
  uint32_t write, reason;
};

int iofs_refused_new(uint64_t cookie, struct iofs_refused **out); /* ENOMEM */
void iofs_refused_free(struct iofs_refused *refused); /* takes NULL; what was not fetched is lost */
/* From any thread; does not wait. length: of the request that the fault was in. */
void iofs_refused_report(struct iofs_refused *refused, const struct iofs_dma_fault *fault,
                         uint64_t length);
int iofs_refused_fd(void); /* an eventfd, readable while iofs_refused_next() has something */
int iofs_refused_next(struct iofs_refusals *out); /* 1: written; 0: none, of no device */

/* ---- access: how a device without an IOMMU reaches an IOAS ----------------------------------- */
int iofs_access_new(int needs_pin_pages, int internal, struct iofs_access **out);
void iofs_access_get(struct iofs_access *access);
void iofs_access_put(struct iofs_access *access); /* the last one frees; it is detached by then */
int iofs_access_attach(struct iofs_access *access, struct iofs_iopt *iopt); /* EINVAL, EADDRINUSE */
int iofs_access_detach(struct iofs_access *access); /* EBUSY while pins are left */

/* EINVAL: length 0, or no page boundary in the source, or being unmapped; EOVERFLOW; ENOENT: it is
 * detached, or there is a hole; EPERM: IOFS_WRITE, or else reading, is not mapped; EFAULT, EINVAL,
 * ENOMEM of a pin. All or nothing. Unpin names exactly what one pin named (else EINVAL). */
int iofs_access_pin(struct iofs_access *access, uint64_t iova, uint64_t length, uint32_t prot);
int iofs_access_unpin(struct iofs_access *access, uint64_t iova, uint64_t length);

/* The same errors, at any byte; areas before the one that fails have been moved by then. May wait
 * for the client's memory: run it in a job. */
int iofs_access_rw(struct iofs_access *access, uint64_t iova, void *buf, size_t length, int write);

/* ---- what the kernel's own tests ask ----------------------------------------------------------
 *
 * Whether the page behind an IOVA is the very page that a client has at an address. EFAULT: the
 * client has none there.
 */
/* Each page of the domain's smallest size: EINVAL if one is another, or is not mapped. */
int iofs_domain_check_map(struct iofs_domain *domain, uint64_t iova, uint64_t length,
                          struct iofs_mm *mm, uint64_t address);
/* Each page of the CPU that the access has pinned in [iova, iova + length): EBADE. */
int iofs_access_check_map(struct iofs_access *access, uint64_t iova, uint64_t length,
                          struct iofs_mm *mm, uint64_t address);
/* EIO if a page is not pinned by just so many mappings, copies of one being one; huge pages are not
 * looked at. */
int iofs_check_pins(struct iofs_mm *mm, uint64_t address, uint64_t length, uint64_t n);

/* ---- job: work that may have to wait for a client's memory ------------------------------------
 *
 * A client's page may be slow for ever (userfaultfd, a file of a dead server), so no thread that
 * serves others touches it: a job runs on a pool of threads that grows when its members are stuck.
 * iofs_job_wait() begins it and waits a moment, the normal case; a job that takes longer is reported
 * through iofs_job_done_fd(). A reader runs the job that a visit asks for itself.
 */
struct iofs_job;

struct iofs_job *iofs_job_client_read(int tid, uint64_t address, size_t length);
struct iofs_job *iofs_job_client_write(int tid, uint64_t address, const void *data, size_t length);
struct iofs_job *iofs_job_dma(struct iofs_domain *domain, uint64_t iova, const void *data,
                              size_t length); /* data NULL: a read by the device */
/* Many of them as one job, in this order: n pairs of an IOVA and a length, and the bytes of all one
 * after the other (data NULL: a read). What is refused does not keep the rest from being moved. The
 * result is how many were refused, or -ENOMEM: the rest is undone; the reason in a span's fault is
 * IOFS_DMA_OK where it was not refused. */
struct iofs_job *iofs_job_dma_spans(struct iofs_domain *domain, const void *spans, size_t n,
                                    const void *data, size_t length);
struct iofs_job *iofs_job_access_rw(struct iofs_access *access, uint64_t iova, const void *data,
                                    size_t length); /* data NULL: a read by the device */

/* 1: done; 0: not yet, its pointer will come out of iofs_job_next_done(). */
int iofs_job_wait(struct iofs_job *job, uint32_t microseconds);
int iofs_job_done_fd(void); /* an eventfd, readable while iofs_job_next_done() has something */
struct iofs_job *iofs_job_next_done(void);

int64_t iofs_job_result(const struct iofs_job *job); /* client: bytes moved or -errno; else 0, -errno */
const void *iofs_job_data(const struct iofs_job *job);
const struct iofs_dma_fault *iofs_job_fault(const struct iofs_job *job);
const struct iofs_dma_fault *iofs_job_faults(const struct iofs_job *job); /* of each span */
/* Its result. One that is running is freed by its thread when it ends. */
int64_t iofs_job_free(struct iofs_job *job);

/* 1: the thread is gone, or ends as soon as it no longer waits in the kernel. */
int iofs_client_is_dying(int tid);
/* A duplicate of file descriptor fd of the process that thread tid belongs to: EBADF, ESRCH, EPERM,
 * EMFILE. */
int iofs_client_fd(int tid, int fd);
/* Close such a duplicate without waiting for its file system, whose server may be the client. */
void iofs_client_close(int fd);

/* Add 1 to an eventfd without ever waiting, whatever its flags; a full counter stays full. */
int iofs_eventfd_signal(int fd);

/* ---- watch: stores of a client to a mapped BAR -------------------------------------------------
 *
 * Stores to a mapping are silent; a poller thread compares words of the BAR's memory with what the
 * model last left there. It spins while stores come, backs off to sleeps of `max_sleep_us` when
 * none do, and rests without a watch.
 */
struct iofs_watch;

struct iofs_watch_event {
  uint64_t cookie, offset, value;
  uint64_t scan; /* stores of one watch with the same number were seen together, in any order */
  uint32_t size;
};

int iofs_watch_new(void *memory, uint64_t cookie, uint32_t max_sleep_us,
                   struct iofs_watch **out);
int iofs_watch_add(struct iofs_watch *watch, uint64_t offset, uint32_t size); /* size 4 or 8 */
/* A word that is 0 again once a store has been seen, so that the same value is seen each time. */
int iofs_watch_add_clearing(struct iofs_watch *watch, uint64_t offset, uint32_t size);
/* The model's own store, which is no event; returns what was there. If that is a client's store, its
 * event may be still to come, and is older than this store. */
uint64_t iofs_watch_store(struct iofs_watch *watch, void *memory, uint64_t offset, uint32_t size,
                          uint64_t value);
void iofs_watch_free(struct iofs_watch *watch);
int iofs_watch_fd(void); /* an eventfd, readable while iofs_watch_next() has something */
int iofs_watch_next(struct iofs_watch_event *out); /* 1: written; 0: none */

/* ---- device: models in C (native/device.h is their side) ---------------------------------------
 *
 * A route is where the DMA of an IOMMU group goes: its domain, or NULL for nowhere. The functions of
 * a group share one.
 */
struct iofs_route;
struct iofs_device;

struct iofs_route *iofs_route_new(void); /* NULL: ENOMEM */
void iofs_route_put(struct iofs_route *route);
void iofs_route_set(struct iofs_route *route, struct iofs_domain *domain);

/* The model of this name, in a shared library or (NULL) among our own. options end with NULL.
 * EINVAL, ENOMEM; `error` gets a line that says why. The cookie names the device in events; refused
 * outlives the device. */
int iofs_device_new(const char *library, const char *name, const char *const *options,
                    uint64_t cookie, struct iofs_refused *refused, char *error, size_t size,
                    struct iofs_device **out);
void iofs_device_free(struct iofs_device *device);

/* What it is connected to. memory: of a mappable BAR, until the device is freed. */
void iofs_device_set_bar(struct iofs_device *device, uint32_t bar, void *memory, uint64_t size);
void iofs_device_set_route(struct iofs_device *device, struct iofs_route *route);
void iofs_device_set_bus_master(struct iofs_device *device, int on);

/* Power on, again if it is on: ENOMEM, EAGAIN. Stop waits for the thread, if a client's memory does
 * not answer only for a moment; in any case nothing is seen or heard of it any more, but for the one
 * access that it may be stuck in. */
int iofs_device_start(struct iofs_device *device);
void iofs_device_stop(struct iofs_device *device);

uint64_t iofs_device_read(struct iofs_device *device, uint32_t bar, uint64_t offset, uint32_t size);
void iofs_device_write(struct iofs_device *device, uint32_t bar, uint64_t offset, uint32_t size,
                       uint64_t value);

/* Interrupts: messages go straight to the eventfd of their vector (-1: none; the fd stays the
 * caller's), or become events. */
enum iofs_device_messages { IOFS_MESSAGES_OFF, IOFS_MESSAGES_DIRECT, IOFS_MESSAGES_BY_EVENT };

void iofs_device_set_messages(struct iofs_device *device, uint32_t mode);
int iofs_device_set_vector(struct iofs_device *device, uint32_t vector, int fd); /* ENOMEM */
int iofs_device_line(struct iofs_device *device); /* level of the INTx line */

/* Pages: whether it may ask for any. Each is an event, and gets one answer: whether it comes. */
void iofs_device_set_page_requests(struct iofs_device *device, int on);
void iofs_device_answer_page(struct iofs_device *device, uint32_t request, int comes);

enum iofs_device_event_kind {
  IOFS_DEVICE_LINE,
  IOFS_DEVICE_MESSAGE,
  IOFS_DEVICE_PAGE,
  IOFS_DEVICE_REPORT
};

struct iofs_device_event {
  uint64_t cookie;
  uint32_t kind;   /* enum iofs_device_event_kind */
  uint32_t vector; /* MESSAGE */
  uint32_t request, write; /* PAGE */
  uint64_t iova;           /* PAGE */
  uint64_t n_lost; /* REPORT: others that had no room */
  char text[128];
};

int iofs_device_event_fd(void); /* an eventfd, readable while there is an event */
int iofs_device_next_event(struct iofs_device_event *out); /* 1: written; 0: none */

#endif
