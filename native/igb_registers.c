/*
 * The registers of the 82576: what they are after a reset, those with two addresses, counting, and
 * which of them are watched (igb.h). They live in the memory of BAR 0, which clients map: a register
 * without side effects is nothing but its word there. What the others do is in igb.c and igb_irq.c.
 */
#include <pthread.h>

#include "igb.h"

/* ---- two addresses ---------------------------------------------------------------------------- */

static const struct {
  uint32_t offset, first;
} aliases[] = {{0x1500, IGB_ICR},
               {0x1504, IGB_ICS},
               {0x1508, IGB_IMS},
               {0x150c, IGB_IMC},
               {0x1510, IGB_IAM}};

#define N_ALIASES (sizeof aliases / sizeof *aliases)

/* Queues 0 to 3 have their registers at a distance of 0x100, and again at one of 0x40. */
static const struct {
  uint32_t first, second;
} blocks[] = {{0x2800, 0xc000}, {0x3800, 0xe000}};

#define N_DOUBLE 4u

uint32_t igb_canonical(uint32_t offset) {
  for (size_t i = 0; i < N_ALIASES; i++)
    if (offset == aliases[i].offset)
      return aliases[i].first;
  for (size_t i = 0; i < 2; i++) {
    uint32_t at = offset - blocks[i].second;
    if (at < N_DOUBLE * 0x40)
      return blocks[i].first + at / 0x40 * 0x100 + at % 0x40;
  }
  return offset;
}

/* The other address of a register, given by its first; 0: there is none. */
static uint32_t alias_of(uint32_t reg) {
  for (size_t i = 0; i < 2; i++) {
    uint32_t at = reg - blocks[i].first;
    if (at < N_DOUBLE * 0x100 && at % 0x100 < 0x40)
      return blocks[i].second + at / 0x100 * 0x40 + at % 0x100;
  }
  for (size_t i = 0; i < N_ALIASES; i++)
    if (reg == aliases[i].first)
      return aliases[i].offset;
  return 0;
}

/* ---- words ------------------------------------------------------------------------------------ */

uint32_t igb_get(struct igb_port *port, uint32_t reg) {
  return (uint32_t)iommufs_load(port->device, 0, reg, 4);
}

uint64_t igb_get64(struct igb_port *port, uint32_t low) {
  return igb_get(port, low) | (uint64_t)igb_get(port, low + 4) << 32;
}

void igb_put(struct igb_port *port, uint32_t reg, uint32_t value) {
  uint32_t alias = alias_of(reg);
  iommufs_store(port->device, 0, reg, 4, value);
  if (alias)
    iommufs_store(port->device, 0, alias, 4, value);
}

uint32_t igb_swap(struct igb_port *port, uint32_t reg, uint32_t value) {
  return (uint32_t)iommufs_exchange(port->device, 0, reg, 4, value);
}

uint64_t igb_descriptor(struct igb_port *port, uint32_t base, uint32_t index) {
  return (igb_get64(port, base) & ~0x7full) + 16ull * index;
}

/* ---- statistics ------------------------------------------------------------------------------- */

int igb_is_statistic(uint32_t reg) { return reg >= IGB_STATISTICS && reg < IGB_STATISTICS_END; }

void igb_count(struct igb_port *port, uint32_t reg, uint32_t n) {
  iommufs_lock(port->device); /* a client may read and so clear it */
  uint32_t value = igb_get(port, reg);
  if (n)
    igb_put(port, reg, n > UINT32_MAX - value ? UINT32_MAX : value + n);
  iommufs_unlock(port->device);
}

static void count64(struct igb_port *port, uint32_t low, uint64_t n) {
  uint64_t value = igb_get64(port, low);
  value = n > UINT64_MAX - value ? UINT64_MAX : value + n;
  igb_put(port, low, (uint32_t)value);
  igb_put(port, low + 4, (uint32_t)(value >> 32));
}

void igb_counts_publish(struct igb_port *port) {
  struct igb_counts *counts = &port->counts;
  iommufs_lock(port->device);
  for (uint32_t i = 0; i < sizeof counts->n / sizeof *counts->n; i++)
    if (counts->n[i])
      igb_count(port, IGB_STATISTICS + 4 * i, counts->n[i]);
  if (counts->received) {
    count64(port, IGB_TOR, counts->received);
    count64(port, IGB_GORC, counts->received_well);
  }
  if (counts->sent) {
    count64(port, IGB_TOT, counts->sent);
    count64(port, IGB_GOTC, counts->sent);
  }
  iommufs_unlock(port->device);
  *counts = (struct igb_counts){0};
}

/* ---- after a reset, without the MAC address --------------------------------------------------- */

static const struct {
  uint32_t reg, value;
} after_reset[] = {
    {IGB_CTRL, 0x00100201}, /* full duplex, 1000 Mb/s */
    {IGB_STATUS, IGB_STATUS_FD | IGB_STATUS_SPEED_1000 | IGB_STATUS_PHYRA | IGB_STATUS_MASTER |
                     IGB_STATUS_RESET_DONE | IGB_STATUS_CLOCK_OK},
    {IGB_EECD, IGB_EECD_FIXED},
    {IGB_VET, 0x81008100},
    {IGB_TCTL, 0xa40400f8},
    {IGB_TCTL_EXT, 0x00010840},
    {IGB_TIPG, 0x00601008},
    {IGB_LEDCTL, 0x07068302},
    {IGB_EEMNGCTL, 0x000c0000}, /* the configuration of both ports is done */
    {IGB_RXPBS, 0x40},
    {IGB_TXPBS, 0x28},
    {IGB_RXCSUM, 0x300},
    {IGB_RLPML, 0x2600},
};

static uint32_t image[IGB_BAR_SIZE / 4];
static pthread_once_t image_once = PTHREAD_ONCE_INIT;

static void draw(uint32_t reg, uint32_t value) {
  image[reg / 4] = value;
  if (alias_of(reg))
    image[alias_of(reg) / 4] = value;
}

static void draw_image(void) {
  for (size_t i = 0; i < sizeof after_reset / sizeof *after_reset; i++)
    draw(after_reset[i].reg, after_reset[i].value);
  for (unsigned queue = 0; queue < IGB_N_QUEUES; queue++) {
    uint32_t enable = queue ? 0 : IGB_QUEUE_ENABLE;
    draw(igb_rx_register(queue, IGB_DCTL), enable | 0x10000);
    draw(igb_tx_register(queue, IGB_DCTL), enable);
  }
}

void igb_registers_reset(struct igb_port *port) {
  struct iommufs_device *device = port->device;
  pthread_once(&image_once, draw_image);
  iommufs_lock(device);
  for (uint32_t at = 0; at < IGB_BAR_SIZE; at += 8) {
    uint64_t now = iommufs_load(device, 0, at, 8);
    for (uint32_t half = 0; half < 8; half += 4, now >>= 32)
      if ((uint32_t)now != image[(at + half) / 4])
        iommufs_store(device, 0, at + half, 4, image[(at + half) / 4]);
  }
  iommufs_unlock(device);
}

/* ---- what is watched -------------------------------------------------------------------------- */

/* In the order in which stores that are seen together are taken: what a driver clears it clears before
 * it enables anything, and what starts something comes last. STATUS is here so that no store stays. */
static const uint32_t watched[] = {
    IGB_CTRL, IGB_STATUS, IGB_EECD, IGB_EERD, IGB_MDIC, IGB_ICR,  IGB_EICR, IGB_IMC,  IGB_IMS,
    IGB_EIMC, IGB_EIMS,   IGB_ICS,  IGB_EICS, 0x1500,   0x1504,   0x1508,   0x150c,   IGB_RCTL,
    IGB_TCTL,
};

static int watch_queues(struct igb_port *port, uint32_t (*address)(unsigned, uint32_t)) {
  static const uint32_t regs[] = {IGB_DCTL, IGB_TAIL};
  int err = 0;
  for (unsigned i = 0; i < 2 * IGB_N_QUEUES && !err; i++)
    err = iommufs_watch(port->device, 0, address(i % IGB_N_QUEUES, regs[i / IGB_N_QUEUES]), 4);
  return err;
}

int igb_registers_watch(struct igb_port *port) {
  int err = 0;
  for (size_t i = 0; i < sizeof watched / sizeof *watched && !err; i++)
    err = iommufs_watch(port->device, 0, watched[i], 4);
  if (!err)
    err = watch_queues(port, igb_rx_register);
  return err ? err : watch_queues(port, igb_tx_register);
}
