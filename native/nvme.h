/*
 * The NVMe controller (docs/nvme.md), version 1.4, shared by the nvme_*.c. Names and numbers are
 * those of the NVM Express base specification 1.4, which is meant wherever a section is cited.
 *
 *   nvme       what a function keeps for ever: namespaces, options, counters of its whole life
 *   nvme_ctrl  one power-on: registers, queues, features
 *
 * The thread of the life carries out commands, and only it touches queues and features. What
 * write() and it share are the registers, under the lock of the device, and the doorbells.
 */
#ifndef IOFS_NVME_H
#define IOFS_NVME_H

#include <stddef.h>
#include <stdint.h>

#include "device.h"

extern const struct iommufs_model nvme_model;

/* ---- registers (3.1) -------------------------------------------------------------------------- */
enum nvme_register {
  NVME_CAP = 0x00,
  NVME_VS = 0x08,
  NVME_INTMS = 0x0c,
  NVME_INTMC = 0x10,
  NVME_CC = 0x14,
  NVME_CSTS = 0x1c,
  NVME_NSSR = 0x20,
  NVME_AQA = 0x24,
  NVME_ASQ = 0x28,
  NVME_ACQ = 0x30,
  NVME_DOORBELLS = 0x1000,
};

#define NVME_VERSION 0x00010400u
#define NVME_MQES 2047u /* entries of a queue, less one */
#define NVME_MPSMAX 4u
#define NVME_CC_EN 1u
#define NVME_CC_WRITABLE 0x00fffff1u
#define NVME_CSTS_RDY 1u
#define NVME_CSTS_CFS 2u
#define NVME_CSTS_SHST 0x0cu
#define NVME_CSTS_SHST_COMPLETE 0x08u
#define NVME_ALL 0xffffffffu /* every namespace */
/* In the doorbells of queues that are not there: nobody stores that, so every store is seen. What a
 * doorbell reads as is the vendor's affair (3.1.16). */
#define NVME_NO_QUEUE 0xffffffffu

static inline unsigned nvme_cc_css(uint32_t cc) { return cc >> 4 & 7; }
static inline unsigned nvme_cc_mps(uint32_t cc) { return cc >> 7 & 15; }
static inline unsigned nvme_cc_shn(uint32_t cc) { return cc >> 14 & 3; }

/* ---- queue entries ---------------------------------------------------------------------------- */
struct nvme_cmd {
  uint8_t opcode, flags;
  uint16_t cid;
  uint32_t nsid;
  uint32_t cdw2, cdw3;
  uint64_t mptr, prp1, prp2;
  uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
};

struct nvme_cqe {
  uint32_t result, reserved;
  uint16_t sqhd, sqid, cid, status; /* status: bit 0 is the phase */
};

_Static_assert(sizeof(struct nvme_cmd) == 64 && sizeof(struct nvme_cqe) == 16, "4.2, 4.6");

/* A status is type << 8 | code; NVME_DNR: do not retry. 4.6.1 */
enum nvme_status {
  NVME_SUCCESS = 0x000,
  NVME_INVALID_OPCODE = 0x001,
  NVME_INVALID_FIELD = 0x002,
  NVME_DATA_TRANSFER = 0x004,
  NVME_INTERNAL = 0x006,
  NVME_ABORTED = 0x007,
  NVME_ABORTED_SQ_DELETED = 0x008,
  NVME_INVALID_NAMESPACE = 0x00b,
  NVME_SEQUENCE = 0x00c,
  NVME_SGL_SEGMENT = 0x00d,
  NVME_SGL_COUNT = 0x00e,
  NVME_SGL_LENGTH = 0x00f,
  NVME_SGL_TYPE = 0x011,
  NVME_PRP_OFFSET = 0x013,
  NVME_KEEP_ALIVE_EXPIRED = 0x014,
  NVME_SGL_OFFSET = 0x016,
  NVME_WRITE_PROTECTED = 0x020,
  NVME_LBA_RANGE = 0x080,
  NVME_CQ_INVALID = 0x100,
  NVME_QUEUE_ID = 0x101,
  NVME_QUEUE_SIZE = 0x102,
  NVME_AER_LIMIT = 0x105,
  NVME_IRQ_VECTOR = 0x108,
  NVME_LOG_PAGE = 0x109,
  NVME_INVALID_FORMAT = 0x10a,
  NVME_QUEUE_DELETION = 0x10c,
  NVME_NOT_SAVEABLE = 0x10d,
  NVME_NOT_CHANGEABLE = 0x10e,
  NVME_NOT_NS_SPECIFIC = 0x10f,
  NVME_COMMAND_SET = 0x12b,
  NVME_WRITE_FAULT = 0x280,
  NVME_READ_ERROR = 0x281,
  NVME_COMPARE = 0x285,
  NVME_DNR = 0x4000,
  NVME_NO_ANSWER = 0x8000, /* not yet: no completion is posted now */
};

/* ---- namespaces ------------------------------------------------------------------------------- */
enum nvme_backing { NVME_MEMORY, NVME_FILE, NVME_NOTHING };

struct nvme_ns {
  uint32_t id;
  enum nvme_backing backing;
  int fd, read_only;
  unsigned lba_lg2; /* 9 or 12 */
  uint64_t size;    /* bytes */
  unsigned char *memory; /* of NOTHING: nvme->zeros */
};

struct nvme_injection {
  int admin, io;      /* queues of these kinds */
  int queue, opcode;  /* -1: any */
  uint32_t nsid;      /* 0: any */
  uint64_t first_lba, last_lba;
  uint64_t skip, every, count; /* of the commands that match: leave out, then each n-th, at most */
  uint64_t seen, done;
  uint16_t status; /* 0: carried out as always */
  int drop;
  uint64_t latency_ns;
};

#define NVME_MAX_NAMESPACES 256

struct nvme {
  char serial[21], model[41], firmware[9];
  unsigned max_queues, n_vectors, mdts;
  uint16_t vendor, subsystem_vendor;
  uint32_t n_namespaces, n_injections;
  struct nvme_ns *namespaces;
  struct nvme_injection *injections;
  unsigned char *zeros, *sink; /* a largest transfer each, for NVME_NOTHING */
  uint16_t temperature;        /* kelvin */
  uint64_t started_ns;
  /* SMART; of several lives at once only in the moment of a reset */
  _Atomic uint64_t sectors_read, sectors_written, reads, writes, power_cycles, unsafe_shutdowns,
      media_errors, n_errors;
};

static inline size_t nvme_max_transfer(const struct nvme *nvme) {
  return (size_t)4096 << nvme->mdts;
}

/* nvme_options.c, nvme_ns.c */
struct nvme *nvme_create(const char *const *options, char *error, size_t size);
void nvme_destroy(struct nvme *nvme);
struct nvme_ns *nvme_find_ns(struct nvme *nvme, uint32_t nsid); /* NULL: there is none */
/* 0 or -errno, and `error` a line. */
int nvme_ns_open(struct nvme_ns *ns, const char *path, struct nvme *nvme, char *error, size_t size);
void nvme_ns_close(struct nvme_ns *ns);
/* The bytes [offset, offset + length), for reading or writing: NULL if they cannot be had. */
unsigned char *nvme_ns_bytes(struct nvme *nvme, struct nvme_ns *ns, uint64_t offset, size_t length,
                             int for_writing);
int nvme_ns_zero(struct nvme_ns *ns, uint64_t offset, uint64_t length); /* -errno */
int nvme_ns_flush(struct nvme_ns *ns);

/* ---- queues ----------------------------------------------------------------------------------- */
#define NVME_MAX_QUEUES 1024 /* I/O queues, with the admin queue one more */
#define NVME_BURST 64        /* commands of one queue before the next has its turn, */
#define NVME_BURST_BYTES (1u << 20) /* or as many as move so much */
#define NVME_BATCH 16        /* completions that are written together */

struct nvme_cq {
  uint64_t base;
  uint32_t size, head, tail; /* head: what the client has taken */
  uint32_t n_sqs, vector;
  int used, phase, interrupts, no_coalescing;
  uint32_t n_batched;
  struct nvme_cqe batch[NVME_BATCH];
  uint64_t coalesced_since; /* ns; 0: none waits for an interrupt */
  uint32_t n_coalesced;
};

struct nvme_sq {
  uint64_t base;
  uint32_t size, head, tail;
  uint32_t cqid;
  int used;
};

/* A command whose completion comes later, or never (due is UINT64_MAX). */
struct nvme_delayed {
  struct nvme_delayed *next;
  uint64_t due;
  uint16_t sqid, cid, status;
  uint32_t result;
};

/* A command that is carried out when a page of the client is there. */
#define NVME_MAX_WAITING 32

struct nvme_waiting {
  struct nvme_cmd cmd;
  uint16_t sqid;
  uint32_t request; /* iommufs_page_answer() */
  struct nvme_injection *injection;
};

/* ---- features --------------------------------------------------------------------------------- */
struct nvme_features {
  uint32_t arbitration, power, error_recovery, write_cache, coalescing, atomicity, events;
  uint32_t keep_alive; /* ms, 0: for ever */
  uint16_t over_threshold, under_threshold;
  uint64_t timestamp_ms, timestamp_set_ns;
  int timestamp_origin;
  uint8_t host_id[16];
  uint8_t host_behavior;
};

/* ---- the controller --------------------------------------------------------------------------- */
#define NVME_N_ERRORS 64
#define NVME_N_AERS 4
#define NVME_MAX_SPANS 1026
#define NVME_KEEP_ALIVE_UNIT_MS 100

struct nvme_error {
  uint64_t count;
  uint16_t sqid, cid, status, location;
  uint64_t lba;
  uint32_t nsid;
  uint8_t rest[36];
};

struct nvme_span {
  uint64_t iova, length;
};

enum nvme_attention { NVME_CHANGED_CC = 1, NVME_CHANGED_MASK = 2 };

struct nvme_ctrl {
  struct iommufs_device *device;
  struct nvme *nvme;

  /* Registers, under the lock of the device. `left`: EN was 0 in the meantime. */
  uint32_t cc, csts, aqa, mask;
  uint64_t asq, acq;
  int left;
  _Atomic uint32_t attention; /* enum nvme_attention: what the thread has still to look at */

  /* Doorbells as the client left them, and which of them are news: a bit each. */
  _Atomic uint32_t doorbells[2 * (NVME_MAX_QUEUES + 1)];
  _Atomic uint64_t rung[2 * (NVME_MAX_QUEUES + 1) / 64 + 1];

  /* The rest is the thread's. */
  int ready;
  unsigned page_lg2;
  int io_queues_made;
  uint32_t last_sq; /* there is none with a greater id */
  struct nvme_sq *sqs; /* by id, 0: admin */
  struct nvme_cq *cqs;
  struct nvme_features features;
  uint64_t kept_alive_ns; /* when */
  uint16_t aers[NVME_N_AERS];
  unsigned n_aers;
  uint32_t events[8]; /* that wait, one of each type: result of the completion, 0: none */
  uint32_t masked_events; /* types that were reported and not read yet, a bit each */
  int line;               /* what INTx was last driven to */
  struct nvme_delayed *delayed;
  struct nvme_waiting waiting[NVME_MAX_WAITING];
  unsigned n_waiting;
  uint32_t request; /* for a page that the command under way has missed, 0: none */
  struct nvme_error errors[NVME_N_ERRORS];
  uint32_t changed[64]; /* namespaces, for the log page */
  unsigned n_changed;
  unsigned char *buffer; /* a largest transfer */
  struct nvme_span spans[NVME_MAX_SPANS];
  unsigned n_spans;
  uint64_t n_moved; /* bytes, in this burst */
};

/* nvme.c */
void nvme_fail(struct nvme_ctrl *ctrl, const char *why); /* CSTS.CFS, until the next reset */
uint64_t nvme_now(void); /* ns */
/* It holds this from now on, and what a client has stored there before is forgotten. */
void nvme_set_doorbell(struct nvme_ctrl *ctrl, unsigned i, uint32_t value);

/* nvme_queue.c */
int nvme_queues_poll(struct nvme_ctrl *ctrl);
void nvme_queues_drop(struct nvme_ctrl *ctrl); /* all of them */
int nvme_queue_start_admin(struct nvme_ctrl *ctrl);
uint16_t nvme_create_cq(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd);
uint16_t nvme_create_sq(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd);
uint16_t nvme_delete_cq(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd);
uint16_t nvme_delete_sq(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd);
/* Whether there is room for one completion more. */
int nvme_can_complete(const struct nvme_ctrl *ctrl, uint16_t sqid);
/* Post the completion of a command that is answered later. */
void nvme_complete(struct nvme_ctrl *ctrl, uint16_t sqid, uint16_t cid, uint16_t status,
                   uint32_t result);
/* Go on with a command that had waited for a page. answer: that of iommufs_page_answer(). */
void nvme_resume(struct nvme_ctrl *ctrl, uint16_t sqid, const struct nvme_cmd *cmd,
                 struct nvme_injection *injection, int answer);
void nvme_update_irqs(struct nvme_ctrl *ctrl);

/* nvme_prp.c: move the data of a command, all of `length` bytes. NVME_NO_ANSWER: a page was missed,
 * for which ctrl->request is. */
uint16_t nvme_map(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, size_t length);
uint16_t nvme_to_client(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, const void *data,
                        size_t length);
uint16_t nvme_from_client(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, void *data,
                          size_t length);

/* nvme_page.c */
int nvme_can_wait(const struct nvme_ctrl *ctrl, uint16_t sqid); /* one command more */
void nvme_wait_for_page(struct nvme_ctrl *ctrl, uint16_t sqid, const struct nvme_cmd *cmd,
                        struct nvme_injection *injection);
int nvme_pages_poll(struct nvme_ctrl *ctrl); /* how many commands went on */
int nvme_abort_waiting(struct nvme_ctrl *ctrl, uint16_t sqid, uint16_t cid); /* 1: it was there */
void nvme_drop_waiting(struct nvme_ctrl *ctrl, uint16_t sqid); /* the queue is deleted */
void nvme_forget_waiting(struct nvme_ctrl *ctrl);

/* nvme_io.c, nvme_admin.c: a status. sqid is for AERs, errors and injections. */
uint16_t nvme_io(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, uint32_t *result);
void nvme_io_soon(const struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd); /* it is the next */
uint16_t nvme_admin(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, uint32_t *result);
uint16_t nvme_identify(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd);
uint16_t nvme_get_feature(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, uint32_t *result);
uint16_t nvme_set_feature(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd, uint32_t *result);
void nvme_features_reset(struct nvme_ctrl *ctrl);
void nvme_keep_alive(struct nvme_ctrl *ctrl);
void nvme_check_alive(struct nvme_ctrl *ctrl); /* fatal if it was not kept so in time */
uint16_t nvme_get_log(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd);
void nvme_log_error(struct nvme_ctrl *ctrl, uint16_t sqid, const struct nvme_cmd *cmd,
                    uint16_t status);
uint8_t nvme_smart_warning(const struct nvme_ctrl *ctrl);

/* nvme_event.c. type, info, page: of the log page that tells more. */
enum { NVME_EVENT_ERROR, NVME_EVENT_SMART, NVME_EVENT_NOTICE };
void nvme_event(struct nvme_ctrl *ctrl, unsigned type, unsigned info, unsigned page);
void nvme_events_deliver(struct nvme_ctrl *ctrl); /* those that wait, as far as was asked for */
void nvme_event_read(struct nvme_ctrl *ctrl, unsigned page); /* its log page was */
uint16_t nvme_event_request(struct nvme_ctrl *ctrl, const struct nvme_cmd *cmd);
void nvme_check_temperature(struct nvme_ctrl *ctrl);
void nvme_namespace_changed(struct nvme_ctrl *ctrl, uint32_t nsid);

/* nvme_inject.c: what is configured to go wrong with a command; NULL: nothing. */
struct nvme_injection *nvme_injected(struct nvme_ctrl *ctrl, uint16_t sqid,
                                     const struct nvme_cmd *cmd);
uint16_t nvme_delay(struct nvme_ctrl *ctrl, uint16_t sqid, uint16_t cid, uint64_t due,
                    uint16_t status, uint32_t result);
int nvme_complete_delayed(struct nvme_ctrl *ctrl); /* those that are due: how many */
int nvme_abort_delayed(struct nvme_ctrl *ctrl, uint16_t sqid, uint16_t cid); /* 1: it was there */
void nvme_drop_delayed(struct nvme_ctrl *ctrl, int sqid); /* -1: of all queues */

#endif
