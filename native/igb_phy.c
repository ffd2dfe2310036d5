/*
 * The PHY and the NVM of an 82576, behind MDIC and EERD (igb.h).
 *
 * The PHY is the integrated one, at address 1: the registers of IEEE 802.3 clause 22, and beyond them
 * plain words, in pages. What is negotiated is always 1000 Mb/s, full duplex.
 */
#include "igb.h"

#define DATA 0xffffu
#define OP_WRITE (1u << 26)
#define OP_READ (1u << 27)
#define READY (1u << 28)
#define ERROR (1u << 30)
#define ADDRESS 1u

enum {
  CONTROL,
  MII_STATUS,
  ID1,
  ID2,
  ADVERTISE,
  PARTNER,
  EXPANSION,
  GIGABIT_CONTROL = 9,
  GIGABIT_STATUS,
  EXTENDED_STATUS = 15,
  PAGED = 16, /* from here on they are there once for each page */
  PORT_STATUS = 17,
  PAGE_SELECT = 31
};

#define CONTROL_RESTART (1u << 9)
#define CONTROL_POWER_DOWN (1u << 11)
#define CONTROL_LOOPBACK (1u << 14)
#define CONTROL_RESET (1u << 15)

static const struct {
  uint16_t value;
  uint16_t linked; /* what is there too with a link */
  int read_only;
} registers[32] = {
    [CONTROL] = {.value = 0x1140},
    [MII_STATUS] = {0x7949, 1 << 2 | 1 << 5, 1}, /* link, negotiated */
    [ID1] = {0x02a8, 0, 1},
    [ID2] = {0x0391, 0, 1},
    [ADVERTISE] = {.value = 0x0de1},
    [PARTNER] = {0, 0x4de1, 1},   /* as we, acknowledged */
    [EXPANSION] = {0, 0x0001, 1}, /* the partner negotiates */
    [GIGABIT_CONTROL] = {.value = 0x0300},
    [GIGABIT_STATUS] = {0, 0x7c00, 1}, /* both receivers are fine, the partner can do it */
    [EXTENDED_STATUS] = {0x3000, 0, 1},
    [PORT_STATUS] = {0, 0xce00, 1}, /* 1000 Mb/s, full duplex */
};

void igb_phy_reset(struct igb_phy *phy) {
  for (unsigned i = 0; i < 32; i++)
    phy->words[i] = registers[i].value;
  phy->page = 0;
  phy->n_paged = 0;
}

int igb_phy_is_looped(const struct igb_phy *phy) { return !!(phy->words[CONTROL] & CONTROL_LOOPBACK); }

int igb_phy_is_powered(const struct igb_phy *phy) {
  return !(phy->words[CONTROL] & CONTROL_POWER_DOWN);
}

/* The word behind a register of the selected page; NULL: it was never written. */
static uint16_t *find_paged(struct igb_phy *phy, unsigned reg) {
  for (unsigned i = 0; i < phy->n_paged; i++)
    if (phy->paged[i].key == ((uint32_t)phy->page << 5 | reg))
      return &phy->paged[i].value;
  return NULL;
}

static uint16_t read_register(struct igb_phy *phy, unsigned reg, int is_linked) {
  uint16_t linked = is_linked ? registers[reg].linked : 0;
  if (reg == PAGE_SELECT)
    return phy->page;
  if (reg < PAGED)
    return phy->words[reg] | linked;
  const uint16_t *word = find_paged(phy, reg);
  return (word ? *word : 0) | linked;
}

static void write_register(struct igb_phy *phy, unsigned reg, uint16_t value) {
  if (reg == PAGE_SELECT)
    phy->page = value;
  else if (reg == CONTROL && value & CONTROL_RESET)
    igb_phy_reset(phy);
  else if (reg == CONTROL)
    phy->words[CONTROL] = value & (uint16_t)~CONTROL_RESTART;
  else if (registers[reg].read_only)
    return;
  else if (reg < PAGED)
    phy->words[reg] = value;
  else if (find_paged(phy, reg))
    *find_paged(phy, reg) = value;
  else if (phy->n_paged < IGB_PHY_PAGED) {
    phy->paged[phy->n_paged].key = (uint32_t)phy->page << 5 | reg;
    phy->paged[phy->n_paged++].value = value;
  }
}

uint32_t igb_phy_access(struct igb_phy *phy, uint32_t mdic, int plugged) {
  unsigned reg = mdic >> 16 & 0x1f;
  if ((mdic >> 21 & 0x1f) != ADDRESS)
    return mdic | READY | ERROR;
  if (mdic & OP_WRITE)
    write_register(phy, reg, mdic & DATA);
  else if (mdic & OP_READ)
    mdic = (mdic & ~DATA) | read_register(phy, reg, plugged && igb_phy_is_powered(phy));
  return mdic | READY;
}

/* ---- NVM (6.2) -------------------------------------------------------------------------------- */

#define CHECKED 0x40u /* words that the checksum covers, itself the last of them */
#define SUM 0xbabau

void igb_nvm_fill(uint16_t *words, const uint8_t *mac) {
  static const struct {
    uint16_t at, value;
  } rest[] = {{0x08, 0xffff}, {0x09, 0xffff}, /* no part number */
              {0x0b, 0x1af4}, {0x0c, 0x1100}, {0x0d, 0x8086}, {0x0e, 0x10c9},
              {0x37, 0xffff}}; /* no second MAC address */
  uint32_t sum = 0;
  for (unsigned i = 0; i < IGB_NVM_WORDS; i++)
    words[i] = 0;
  for (unsigned i = 0; i < 3; i++)
    words[i] = (uint16_t)(mac[2 * i] | mac[2 * i + 1] << 8);
  for (unsigned i = 0; i < sizeof rest / sizeof *rest; i++)
    words[rest[i].at] = rest[i].value;
  for (unsigned i = 0; i < CHECKED - 1; i++)
    sum += words[i];
  words[CHECKED - 1] = (uint16_t)(SUM - sum);
}
