/* Which frames an 82576 takes in, into which queue, and what it says of them (igb.h; 7.1). */
#include <string.h>

#include "igb.h"

#define LONGEST 1518u /* with the FCS, without RCTL.LPE */
#define N_RA 24u
#define N_RA_LOWER 16u
#define UNDER_WAY (1u << 20) /* bytes that are held at most while they are written to memory */

#define IP_OFFLOAD (1u << 8) /* of RXCSUM */
#define L4_OFFLOAD (1u << 9)
#define HASH_NOT_SUM (1u << 13)
#define MRQC_RSS 2u

/* Of a descriptor's status and errors. */
#define VP 0x08u
#define UDPCS 0x10u
#define L4CS 0x20u
#define IPCS 0x40u
#define L4E (1u << 29)
#define IPE (1u << 30)

static const uint8_t broadcast_address[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

/* The registers that decide, as they are at one moment. */
struct filters {
  uint32_t rctl, rxcsum, mrqc, longest;
  int strips_tags, uses_rss;
  uint8_t key[40];
  unsigned n_addresses;
  uint8_t addresses[N_RA][6];
};

static void load_addresses(struct filters *filters, struct igb_port *port) {
  for (uint32_t i = 0; i < N_RA; i++) {
    uint32_t at = i < N_RA_LOWER ? IGB_RA + 8 * i : IGB_RA_UPPER + 8 * (i - N_RA_LOWER);
    uint64_t address = igb_get64(port, at);
    if (address >> 32 & IGB_RAH_VALID)
      memcpy(filters->addresses[filters->n_addresses++], &address, 6);
  }
}

static void load(struct filters *filters, struct igb_port *port) {
  const uint32_t all = IGB_RCTL_UPE | IGB_RCTL_MPE | IGB_RCTL_BAM;
  memset(filters, 0, sizeof *filters);
  iommufs_lock(port->device);
  filters->rctl = igb_get(port, IGB_RCTL);
  filters->rxcsum = igb_get(port, IGB_RXCSUM);
  filters->mrqc = igb_get(port, IGB_MRQC);
  filters->strips_tags = !!(igb_get(port, IGB_CTRL) & IGB_CTRL_VME);
  filters->longest = filters->rctl & IGB_RCTL_LPE ? igb_get(port, IGB_RLPML) : LONGEST;
  filters->uses_rss = (filters->mrqc & 7) == MRQC_RSS;
  for (uint32_t at = 0; filters->uses_rss && at < sizeof filters->key; at += 4) {
    uint32_t word = igb_get(port, IGB_RSSRK + at);
    memcpy(filters->key + at, &word, 4);
  }
  if ((filters->rctl & all) != all)
    load_addresses(filters, port);
  iommufs_unlock(port->device);
}

/* ---- which ------------------------------------------------------------------------------------ */

/* A bit of a table of 32-bit registers. */
static int has_bit(struct igb_port *port, uint32_t table, uint32_t number) {
  return igb_get(port, table + 4 * (number >> 5)) >> (number & 31) & 1;
}

static int is_in_mta(struct igb_port *port, const struct filters *filters, const uint8_t *to) {
  static const unsigned shifts[] = {4, 3, 2, 0}; /* by RCTL.MO */
  uint32_t bits = to[4] | (uint32_t)to[5] << 8;
  return has_bit(port, IGB_MTA, bits >> shifts[filters->rctl >> 12 & 3] & 0xfff);
}

static int is_address_wanted(struct igb_port *port, const struct filters *filters,
                             const uint8_t *to) {
  int is_multicast = to[0] & 1;
  if (!memcmp(to, broadcast_address, 6))
    return !!(filters->rctl & (IGB_RCTL_BAM | IGB_RCTL_MPE));
  if (filters->rctl & (is_multicast ? IGB_RCTL_MPE : IGB_RCTL_UPE))
    return 1;
  for (unsigned i = 0; i < filters->n_addresses; i++)
    if (!memcmp(to, filters->addresses[i], 6))
      return 1;
  return is_multicast && is_in_mta(port, filters, to);
}

/* Whether the frame is wanted; *counter: the statistic that counts it if its length is wrong. */
static int is_wanted(struct igb_port *port, const struct filters *filters,
                     const struct igb_frame *frame, uint32_t *counter) {
  int tagged = igb_is_tagged(frame->data, frame->length);
  uint64_t length = (uint64_t)frame->length + IGB_FCS;
  *counter = 0;
  if (frame->length < IGB_SHORTEST)
    *counter = IGB_RUC;
  else if (length > (uint64_t)filters->longest + (tagged ? IGB_TAG : 0))
    *counter = IGB_ROC;
  if (*counter || !is_address_wanted(port, filters, frame->data))
    return 0;
  return !(tagged && filters->rctl & IGB_RCTL_VFE) ||
         has_bit(port, IGB_VFTA, igb_get16(frame->data + 14) & 0xfff);
}

/* ---- what is said of them --------------------------------------------------------------------- */

static uint32_t check_sums(const struct filters *filters, const struct igb_frame *frame,
                           const struct igb_headers *headers) {
  uint32_t status = 0;
  if (filters->rxcsum & IP_OFFLOAD && headers->kind & IGB_IPV4)
    status |= IPCS | (igb_ip_sum_is_right(frame->data, headers) ? 0 : IPE);
  if (filters->rxcsum & L4_OFFLOAD && headers->l4) {
    int right = igb_l4_sum_is_right(frame->data, headers);
    if (right >= 0)
      status |= L4CS | (right ? 0 : L4E) | (headers->kind & IGB_UDP ? UDPCS : 0);
  }
  return status;
}

/* Make a frame what goes to memory; its queue. */
static unsigned arrive(struct igb_port *port, const struct filters *filters,
                       struct igb_frame *frame) {
  struct igb_headers headers = igb_parse(frame->data, frame->length);
  uint32_t hash = 0, type = 0;
  unsigned queue = 0;
  frame->status = check_sums(filters, frame, &headers);
  if (filters->uses_rss)
    type = igb_rss(filters->mrqc, filters->key, frame->data, &headers, &hash);
  if (type)
    queue = igb_get(port, IGB_RETA + (hash & 0x7c)) >> 8 * (hash & 3) & 0xf;
  frame->kind = type | headers.kind << 4;
  frame->rss = filters->rxcsum & HASH_NOT_SUM ? hash : 0; /* the sum of a fragment is left out */
  frame->vlan = 0;
  if (filters->strips_tags && igb_is_tagged(frame->data, frame->length)) {
    frame->status |= VP;
    frame->vlan = igb_get16(frame->data + 14);
    igb_frame_strip_tag(frame);
  }
  if (!(filters->rctl & IGB_RCTL_SECRC))
    igb_frame_append_fcs(frame);
  return queue;
}

/* ---- counting --------------------------------------------------------------------------------- */

void igb_count_frame(struct igb_port *port, const struct igb_frame *frame, uint32_t by_size,
                     uint32_t broadcast, uint32_t multicast) {
  static const uint32_t sizes[] = {64, 127, 255, 511, 1023}; /* upper bounds */
  uint32_t class = 0;
  while (class < 5 && frame->length + IGB_FCS > sizes[class])
    class++;
  igb_tally(port, by_size + 4 * class);
  if (frame->data[0] & 1)
    igb_tally(port, memcmp(frame->data, broadcast_address, 6) ? multicast : broadcast);
}

/* ---- frames come in --------------------------------------------------------------------------- */

/* Whether so many bytes more can be held: what has descriptors, and what may wait for some. */
static int has_room(struct igb_port *port, uint32_t length) {
  uint64_t promised = 0, size = (uint64_t)(igb_get(port, IGB_RXPBS) & 0x7f) << 10;
  if (port->backlog + length <= size)
    return 1;
  for (unsigned queue = 0; queue < IGB_N_QUEUES; queue++)
    promised += igb_rx_promised(port, queue);
  return port->backlog + length <= size + (promised < UNDER_WAY ? promised : UNDER_WAY);
}

static void take_in(struct igb_port *port, const struct filters *filters, struct igb_frame *frame) {
  uint32_t counter;
  igb_tally(port, IGB_TPR);
  port->counts.received += frame->length + IGB_FCS;
  if (!is_wanted(port, filters, frame, &counter)) {
    if (counter)
      igb_tally(port, counter);
    igb_frame_free(frame);
    return;
  }
  port->counts.received_well += frame->length + IGB_FCS;
  igb_count_frame(port, frame, IGB_PRC64, IGB_BPRC, IGB_MPRC);
  unsigned queue = arrive(port, filters, frame);
  int has = has_room(port, frame->length);
  igb_tally(port, has ? IGB_GPRC : IGB_MPC);
  if (has && igb_rx_is_enabled(port, queue)) {
    port->backlog += frame->length;
    igb_frames_add(&port->rx[queue].arrivals, frame);
    port->rx_due |= 1u << queue;
  } else
    igb_frame_free(frame);
}

void igb_hear(struct igb_port *port, struct igb_frames *frames) {
  struct filters filters;
  struct igb_frame *frame;
  if (!frames->first)
    return;
  load(&filters, port);
  while (filters.rctl & IGB_RCTL_EN && (frame = igb_frames_pop(frames)))
    take_in(port, &filters, frame);
  igb_frames_free(frames);
}
