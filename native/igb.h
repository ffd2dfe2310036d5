/*
 * Intel's 82576 Gigabit Ethernet controller (docs/igb.md), shared by the igb_*.c. Names and numbers
 * are those of Intel's 82576EB datasheet, which is meant wherever a section is cited.
 *
 *   igb       what a function keeps for ever: its NVM, its end of a wire, its record
 *   igb_port  one power-on: registers, PHY, queues
 *   frame     an Ethernet frame without its FCS; whoever has it owns it
 *
 * The thread of the life moves frames, and only it touches queues. What write() and it share are the
 * registers, which lie in BAR memory, the interrupts and the PHY: under the lock of the device.
 * Functions that need it held say so. The lock of all wires comes after it.
 */
#ifndef IOFS_IGB_H
#define IOFS_IGB_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "device.h"

extern const struct iommufs_model igb_model;

#define IGB_BAR_SIZE 0x20000u
#define IGB_N_QUEUES 16u /* of each direction */

/* ---- registers (chapter 8) -------------------------------------------------------------------- */
enum igb_register {
  IGB_CTRL = 0x0000,
  IGB_STATUS = 0x0008,
  IGB_EECD = 0x0010,
  IGB_EERD = 0x0014,
  IGB_CTRL_EXT = 0x0018,
  IGB_MDIC = 0x0020,
  IGB_VET = 0x0038,
  IGB_ICR = 0x00c0,
  IGB_ICS = 0x00c8,
  IGB_IMS = 0x00d0,
  IGB_IMC = 0x00d8,
  IGB_IAM = 0x00e0,
  IGB_RCTL = 0x0100,
  IGB_TCTL = 0x0400,
  IGB_TCTL_EXT = 0x0404,
  IGB_TIPG = 0x0410,
  IGB_LEDCTL = 0x0e00,
  IGB_EEMNGCTL = 0x1010,
  IGB_GPIE = 0x1514,
  IGB_EICS = 0x1520,
  IGB_EIMS = 0x1524,
  IGB_EIMC = 0x1528,
  IGB_EIAC = 0x152c,
  IGB_EIAM = 0x1530,
  IGB_EICR = 0x1580,
  IGB_IVAR = 0x1700,
  IGB_IVAR_MISC = 0x1740,
  IGB_RXPBS = 0x2404,
  IGB_TXPBS = 0x3404,
  /* statistics: from here to IGB_STATISTICS_END; those with two words are 64 bits */
  IGB_STATISTICS = 0x4000,
  IGB_MPC = 0x4010,
  IGB_PRC64 = 0x405c, /* and five more: 127, 255, 511, 1023, 1522 */
  IGB_GPRC = 0x4074,
  IGB_BPRC = 0x4078,
  IGB_MPRC = 0x407c,
  IGB_GPTC = 0x4080,
  IGB_GORC = 0x4088,
  IGB_GOTC = 0x4090,
  IGB_RNBC = 0x40a0,
  IGB_RUC = 0x40a4,
  IGB_ROC = 0x40ac,
  IGB_TOR = 0x40c0,
  IGB_TOT = 0x40c8,
  IGB_TPR = 0x40d0,
  IGB_TPT = 0x40d4,
  IGB_PTC64 = 0x40d8, /* likewise */
  IGB_MPTC = 0x40f0,
  IGB_BPTC = 0x40f4,
  IGB_TSCTC = 0x40f8,
  IGB_STATISTICS_END = 0x4140,
  IGB_RXCSUM = 0x5000,
  IGB_RLPML = 0x5004,
  IGB_MTA = 0x5200,
  IGB_RA = 0x5400, /* pairs of RAL and RAH, 16 here and 8 at IGB_RA_UPPER */
  IGB_RA_UPPER = 0x54e0,
  IGB_VFTA = 0x5600,
  IGB_MRQC = 0x5818,
  IGB_RETA = 0x5c00,
  IGB_RSSRK = 0x5c80,
};

/* In the block of a queue. */
enum igb_queue_register {
  IGB_BAL = 0x00,
  IGB_BAH = 0x04,
  IGB_LEN = 0x08,
  IGB_SRRCTL = 0x0c,
  IGB_HEAD = 0x10,
  IGB_TAIL = 0x18,
  IGB_DCTL = 0x28,
  IGB_DROPPED = 0x30,
  IGB_WBAL = 0x38,
  IGB_WBAH = 0x3c,
};

/* Of a register of queue 0 … 15. Queues 0 to 3 have two addresses; this is the first. */
static inline uint32_t igb_rx_register(unsigned queue, uint32_t reg) {
  return reg + (queue < 4 ? 0x2800 + 0x100 * queue : 0xc000 + 0x40 * queue);
}

static inline uint32_t igb_tx_register(unsigned queue, uint32_t reg) {
  return reg + (queue < 4 ? 0x3800 + 0x100 * queue : 0xe000 + 0x40 * queue);
}

#define IGB_CTRL_MASTER_DISABLE (1u << 2)
#define IGB_CTRL_SLU (1u << 6)
#define IGB_CTRL_RST (1u << 26)
#define IGB_CTRL_VME (1u << 30)
#define IGB_CTRL_PHY_RST (1u << 31)
#define IGB_CTRL_EXT_IAME (1u << 27)
#define IGB_STATUS_FD (1u << 0)
#define IGB_STATUS_LU (1u << 1)
#define IGB_STATUS_SPEED_1000 (2u << 6)
#define IGB_STATUS_PHYRA (1u << 10)
#define IGB_STATUS_MASTER (1u << 19)
#define IGB_STATUS_RESET_DONE (1u << 21)
#define IGB_STATUS_CLOCK_OK (1u << 31)
#define IGB_EECD_FIXED (1u << 7 | 1u << 8 | 1u << 9 | 4u << 11) /* granted, present, read, size */
#define IGB_EECD_WRITABLE 0x4fu
#define IGB_EERD_START 1u
#define IGB_EERD_DONE 2u
#define IGB_RCTL_EN (1u << 1)
#define IGB_RCTL_UPE (1u << 3)
#define IGB_RCTL_MPE (1u << 4)
#define IGB_RCTL_LPE (1u << 5)
#define IGB_RCTL_LBM (3u << 6)
#define IGB_RCTL_BAM (1u << 15)
#define IGB_RCTL_VFE (1u << 18)
#define IGB_RCTL_SECRC (1u << 26)
#define IGB_TCTL_EN (1u << 1)
#define IGB_TCTL_PSP (1u << 3)
#define IGB_QUEUE_ENABLE (1u << 25) /* of RXDCTL and TXDCTL */
#define IGB_RAH_VALID (1u << 31)
#define IGB_GPIE_NSICR (1u << 0)
#define IGB_GPIE_MULTIPLE_MSIX (1u << 4)
#define IGB_GPIE_EIAME (1u << 30)

/* Causes in ICR. */
#define IGB_TXDW (1u << 0)
#define IGB_LSC (1u << 2)
#define IGB_RXO (1u << 6)
#define IGB_RXDW (1u << 7)
#define IGB_INT_ASSERTED (1u << 31)
#define IGB_EICR_OTHER (1u << 31) /* in EICR, without MSI-X */

/* ---- frames (igb_frame.c) --------------------------------------------------------------------- */
#define IGB_LONGEST 9728u /* bytes */
#define IGB_SHORTEST 60u
#define IGB_FCS 4u
#define IGB_TAG 4u

struct igb_frame {
  struct igb_frame *next;
  uint8_t *data; /* with room for a tag before it, and for padding and an FCS behind it */
  uint32_t length;
  /* what a receive descriptor says of it: packet and RSS type; status and errors, without DD and
   * EOP; the tag that was taken out */
  uint32_t kind, rss, status;
  uint16_t vlan;
  uint8_t room[];
};

struct igb_frames { /* a list; {0}: empty */
  struct igb_frame *first, *last;
  uint32_t n;
  uint64_t n_bytes;
};

struct igb_frame *igb_frame_new(uint32_t length); /* NULL: no memory */
struct igb_frame *igb_frame_copy(const struct igb_frame *frame);
void igb_frame_free(struct igb_frame *frame);
void igb_frame_pad(struct igb_frame *frame);
void igb_frame_insert_tag(struct igb_frame *frame, uint16_t ethertype, uint16_t tag);
void igb_frame_strip_tag(struct igb_frame *frame);
void igb_frame_append_fcs(struct igb_frame *frame);
uint32_t igb_crc32(const uint8_t *data, size_t length);
void igb_frames_add(struct igb_frames *frames, struct igb_frame *frame);
void igb_frames_join(struct igb_frames *frames, struct igb_frames *more); /* which is empty then */
struct igb_frame *igb_frames_pop(struct igb_frames *frames); /* NULL: there is none */
void igb_frames_free(struct igb_frames *frames);

/* ---- headers (igb_headers.c) ------------------------------------------------------------------ */
/* Packet types, as in a receive descriptor. */
#define IGB_IPV4 0x01u
#define IGB_IPV4_OPTIONS 0x02u
#define IGB_IPV6 0x04u
#define IGB_IPV6_EXTENSIONS 0x08u
#define IGB_TCP 0x10u
#define IGB_UDP 0x20u
#define IGB_SCTP 0x40u

/* kind is 0 where nothing is known; the rest are offsets in the frame. l4 0: there is none. */
struct igb_headers {
  uint32_t kind, l3, l4, end;
  uint32_t addresses, n_addresses; /* source and destination of IP, bytes of both */
  uint8_t protocol;
};

uint16_t igb_get16(const uint8_t *at); /* big endian */
void igb_put16(uint8_t *at, uint32_t value);
/* The one's complement sum of 16-bit words, big endian, 0 … 0xffff; of an odd byte as if 0 followed. */
uint32_t igb_sum(const uint8_t *data, size_t length);
int igb_is_tagged(const uint8_t *data, uint32_t length);
/* Frames that are cut short count as far as they go. */
struct igb_headers igb_parse(const uint8_t *data, uint32_t length);
int igb_ip_sum_is_right(const uint8_t *data, const struct igb_headers *headers);
int igb_l4_sum_is_right(const uint8_t *data, const struct igb_headers *headers); /* -1: none there */
/* The hash of RSS under a key of 40 bytes; at most 36 bytes. */
uint32_t igb_toeplitz(const uint8_t *key, const uint8_t *data, size_t length);
/* The RSS type of a frame, 0: it has none; the hash. mrqc: the register, which enables types. */
uint32_t igb_rss(uint32_t mrqc, const uint8_t *key, const uint8_t *data,
                 const struct igb_headers *headers, uint32_t *hash);

/* ---- on the way out (igb_offload.c) ----------------------------------------------------------- */
enum { IGB_L4_UDP, IGB_L4_TCP, IGB_L4_SCTP }; /* which has no checksum here */

/* An advanced context descriptor (7.2.2.2): lengths in bytes. */
struct igb_context {
  uint32_t vlan, mac_length, ip_length, l4, l4_length, mss;
  int is_v4;
};

struct igb_context igb_context_of(uint32_t low, uint32_t type, uint32_t lengths);
void igb_insert_checksums(uint8_t *data, size_t length, const struct igb_context *context, int ip,
                          int l4);
/* A legacy descriptor's: the sum of all from `start` on is put to `at`. */
void igb_insert_sum(uint8_t *data, size_t length, size_t start, size_t at);
/* Frames of at most MSS bytes of payload each, with headers made from those in data. None at all if
 * the context cannot be right. ENOMEM: some are missing. */
int igb_segment(const uint8_t *data, size_t length, const struct igb_context *context, int ip,
                int l4, struct igb_frames *out);

/* ---- the wire (igb_wire.c) -------------------------------------------------------------------- */
struct igb_port;

/* Under the lock of all wires, but for what is atomic. */
struct igb_end {
  struct igb_end *next;
  const char *name; /* of the wire; NULL: there is none */
  int is_plugged;   /* something beside the wire is */
  unsigned index;   /* how many were on the wire before */
  const struct igb_port *owner;  /* the life it belongs to; NULL: none */
  struct iommufs_device *device; /* of that life, once it can be woken */
  unsigned n_wakers;
  int powered, to_be_woken, awaited; /* awaited: somebody waits for room */
  _Atomic int listening;
  _Atomic int has_news, has_mail; /* news: of the power of others; mail: in the inbox */
  _Atomic int owes_wakes;         /* there are others to be woken */
  struct igb_frames inbox;
  uint64_t n_missed, full_ns; /* since when it is full; 0: it is not */
};

/* name: of a wire, NULL: none. Both without any lock. */
void igb_wire_join(struct igb_end *end, const char *name, int is_plugged);
void igb_wire_leave(struct igb_end *end);
void igb_wire_open(struct igb_end *end, const struct igb_port *owner); /* a life begins */
/* It ends. attended: by its thread, without any lock; else it was never woken. */
void igb_wire_close(struct igb_end *end, const struct igb_port *owner, int attended);
void igb_wire_attend(struct igb_end *end, const struct igb_port *owner,
                     struct iommufs_device *device); /* from now on it can be woken */
void igb_wire_listen(struct igb_end *end, const struct igb_port *owner, int on);
void igb_wire_power(struct igb_end *end, const struct igb_port *owner, int on);
int igb_wire_is_plugged(const struct igb_end *end); /* there is another PHY that has power */
void igb_wire_clear(struct igb_end *end, const struct igb_port *owner); /* its inbox */
int igb_wire_has_room(struct igb_end *end); /* at all others; no: it is told when there is */
void igb_wire_send(struct igb_end *end, struct igb_frames *frames); /* they are gone then */
/* All that came; returns how many were lost for lack of room. */
uint64_t igb_wire_take(struct igb_end *end, const struct igb_port *owner, struct igb_frames *out);
/* A frame comes from outside; without any lock. EAGAIN: there is no room now, it is still yours. */
int igb_wire_bring(struct igb_end *end, struct igb_frame *frame);
void igb_wire_wake_others(struct igb_end *end); /* who is to be woken; without any lock */

/* ---- a tap interface (igb_tap.c) -------------------------------------------------------------- */
struct igb_tap;

/* NULL: `error` has a line that says why. */
struct igb_tap *igb_tap_open(const char *name, struct igb_end *end, char *error, size_t size);
int igb_tap_start(struct igb_tap *tap); /* from now on frames come in; -EAGAIN: no thread */
void igb_tap_send(struct igb_tap *tap, const struct igb_frames *frames);
void igb_tap_close(struct igb_tap *tap);

/* ---- frames of a file (igb_replay.c) ---------------------------------------------------------- */
struct igb_replay;

struct igb_replay *igb_replay_open(const char *path, const char **why); /* NULL: what is wrong */
/* NULL: there is none any more, and *why is NULL or says what is wrong. */
struct igb_frame *igb_replay_next(struct igb_replay *replay, const char **why);
void igb_replay_close(struct igb_replay *replay); /* or NULL */

/* ---- PHY and NVM (igb_phy.c) ------------------------------------------------------------------ */
#define IGB_NVM_WORDS 1024u
#define IGB_PHY_PAGED 128u

struct igb_phy {
  uint16_t words[32];
  uint16_t page;
  struct {
    uint32_t key;
    uint16_t value;
  } paged[IGB_PHY_PAGED]; /* registers from 16 on, as far as they were written */
  unsigned n_paged;
};

void igb_phy_reset(struct igb_phy *phy);
int igb_phy_is_looped(const struct igb_phy *phy);
int igb_phy_is_powered(const struct igb_phy *phy);
/* What MDIC holds after a command; plugged: with something at the other end. */
uint32_t igb_phy_access(struct igb_phy *phy, uint32_t mdic, int plugged);
void igb_nvm_fill(uint16_t *words, const uint8_t *mac);

/* ---- interrupts (igb_irq.c): with the lock held ----------------------------------------------- */
struct igb_irq {
  uint32_t icr, ims, eicr, eims;
  uint32_t announced; /* causes of ICR that an interrupt told of */
  uint32_t arriving;  /* bits of EICR whose descriptors the client does not see yet */
  uint32_t shown;     /* what EICR was left as in BAR memory */
};

/* Of stores that were seen together. */
struct igb_mask_stores {
  uint32_t icr, eicr, imc, ims, eimc, eims, ics, eics;
  int any, has_eicr, has_mask;
};

uint32_t igb_mask_after(uint32_t mask, uint32_t cleared, uint32_t set);
int igb_irq_owns(uint32_t reg);
void igb_irq_reset(struct igb_port *port);
void igb_irq_cause(struct igb_port *port, uint32_t bits);
void igb_irq_queues(struct igb_port *port, uint32_t received, uint32_t sent); /* a bit each */
void igb_irq_arriving(struct igb_port *port, unsigned queue);
void igb_irq_arrived(struct igb_port *port, unsigned queue);
int igb_irq_read(struct igb_port *port, uint32_t reg, uint32_t *value); /* 0: it is just memory */
void igb_irq_write(struct igb_port *port, uint32_t reg, uint32_t value);
void igb_irq_collect(struct igb_mask_stores *stores, uint32_t reg, uint32_t value);
void igb_irq_store(struct igb_port *port, struct igb_mask_stores *stores); /* it is empty then */

/* ---- queues ----------------------------------------------------------------------------------- */
struct igb_tx {
  struct igb_context contexts[2];
  /* the packet that has no end yet */
  uint8_t *data;
  size_t length, capacity; /* length may be more: then it is too long */
  uint32_t command, options;
  struct igb_context context;
  int begun, is_lost;
};

struct igb_rx {
  struct igb_frames arrivals; /* that wait for descriptors */
};

struct igb_counts {
  uint32_t n[(IGB_STATISTICS_END - IGB_STATISTICS) / 4];
  uint64_t received, received_well, sent; /* octets */
};

/* ---- the port --------------------------------------------------------------------------------- */
struct igb {
  struct igb_end end;
  uint16_t nvm[IGB_NVM_WORDS];
  char *wire, *pcap_out, *pcap_in;
  struct igb_tap *tap; /* NULL: none */
  _Atomic int recorded, is_record_lost; /* the record was begun; the last try failed */
};

struct igb_port {
  struct iommufs_device *device;
  struct igb *igb;

  /* under the lock */
  uint32_t status, io_address;
  struct igb_phy phy;
  struct igb_irq irq;

  /* What the thread has to look at: bits of queues. */
  _Atomic uint32_t tx_due, rx_due;
  _Atomic uint32_t tx_stopped, rx_stopped; /* it has to forget what is under way */
  _Atomic int looped;
  _Atomic int rewind; /* the file of frames begins anew */

  /* the thread's */
  int attends;
  FILE *record;
  struct igb_replay *replay;
  struct igb_tx tx[IGB_N_QUEUES];
  struct igb_rx rx[IGB_N_QUEUES];
  uint64_t backlog; /* bytes of arrivals */
  struct igb_counts counts;
};

/* igb_registers.c: with or without the lock, unless it says so */
uint32_t igb_get(struct igb_port *port, uint32_t reg);
uint64_t igb_get64(struct igb_port *port, uint32_t low);
void igb_put(struct igb_port *port, uint32_t reg, uint32_t value); /* at both addresses */
uint32_t igb_swap(struct igb_port *port, uint32_t reg, uint32_t value); /* iommufs_exchange() */
uint32_t igb_canonical(uint32_t offset); /* the first address of the register there */
uint64_t igb_descriptor(struct igb_port *port, uint32_t base, uint32_t index); /* its IOVA */
int igb_is_statistic(uint32_t reg);
void igb_count(struct igb_port *port, uint32_t reg, uint32_t n); /* it stays at its maximum */
void igb_counts_publish(struct igb_port *port); /* what was counted on the way */
void igb_registers_reset(struct igb_port *port);
int igb_registers_watch(struct igb_port *port); /* -errno */

static inline void igb_tally(struct igb_port *port, uint32_t reg) {
  port->counts.n[(reg - IGB_STATISTICS) / 4]++;
}

/* igb_tx.c, igb_rx.c, igb_filters.c, igb_engine.c: by the thread, without the lock */
/* The frames of the next descriptors. 0: there is nothing to do. *reported: a report was asked for. */
int igb_tx_take(struct igb_port *port, unsigned queue, struct igb_frames *out, int *reported);
void igb_tx_forget(struct igb_tx *tx);
/* Write the next frames to memory. 0: there is none, or nowhere to. */
int igb_rx_put(struct igb_port *port, unsigned queue);
void igb_rx_forget(struct igb_port *port, unsigned queue);
int igb_rx_is_enabled(struct igb_port *port, unsigned queue);
uint64_t igb_rx_promised(struct igb_port *port, unsigned queue); /* bytes that have descriptors */
/* Frames come in: those that are wanted go to their queues. */
void igb_hear(struct igb_port *port, struct igb_frames *frames);
void igb_count_frame(struct igb_port *port, const struct igb_frame *frame, uint32_t by_size,
                     uint32_t broadcast, uint32_t multicast);
int igb_engine_poll(struct igb_port *port);

/* igb_record.c: a file in the format of libpcap, or go on with one. NULL: errno. */
FILE *igb_record_open(const char *path, int new);
int igb_record_write(FILE *file, const struct igb_frames *frames); /* -errno */

/* igb.c: with the lock held */
void igb_update_link(struct igb_port *port);

#endif
