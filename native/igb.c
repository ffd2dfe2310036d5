/*
 * The 82576: its life and what its registers do (igb.h). Registers without side effects are only memory.
 */
#include "igb.h"

#include <stdlib.h>
#include <string.h>

#include "alloc.h"

enum { MMIO, FLASH, PORTS }; /* BARs */
#define ALL_QUEUES ((1u << IGB_N_QUEUES) - 1)

/* ---- on and off; with the lock held ----------------------------------------------------------- */

/* What CTRL.RST does: everything but the PHY. */
static void restart(struct igb_port *port) {
  const uint16_t *nvm = port->igb->nvm;
  port->tx_due = port->rx_due = 0;
  port->tx_stopped = port->rx_stopped = ALL_QUEUES;
  port->rewind = 1;
  igb_wire_listen(&port->igb->end, port, 0);
  igb_wire_clear(&port->igb->end, port);
  igb_registers_reset(port);
  igb_irq_reset(port);
  igb_put(port, IGB_RA, nvm[0] | (uint32_t)nvm[1] << 16);
  igb_put(port, IGB_RA + 4, nvm[2] | IGB_RAH_VALID);
  port->status = igb_get(port, IGB_STATUS);
  igb_update_link(port);
}

/* The link is up if the client wants one and there is another end, or a loopback. */
void igb_update_link(struct igb_port *port) {
  struct igb_end *end = &port->igb->end;
  uint32_t was = port->status;
  end->has_news = 0;
  igb_wire_power(end, port, igb_phy_is_powered(&port->phy));
  port->looped = igb_phy_is_looped(&port->phy) || igb_get(port, IGB_RCTL) & IGB_RCTL_LBM;
  int linked = port->looped || (igb_phy_is_powered(&port->phy) && igb_wire_is_plugged(end));
  port->status &= ~IGB_STATUS_LU;
  if (linked && igb_get(port, IGB_CTRL) & IGB_CTRL_SLU)
    port->status |= IGB_STATUS_LU;
  igb_put(port, IGB_STATUS, port->status);
  if ((was ^ port->status) & IGB_STATUS_LU)
    igb_irq_cause(port, IGB_LSC);
}

/* ---- what writing does ------------------------------------------------------------------------ */

static void write_ctrl(struct igb_port *port, uint32_t value) {
  if (value & IGB_CTRL_RST) {
    restart(port);
    return;
  }
  if (value & IGB_CTRL_PHY_RST)
    igb_phy_reset(&port->phy);
  igb_put(port, IGB_CTRL, value);
  port->status &= ~IGB_STATUS_MASTER;
  if (!(value & IGB_CTRL_MASTER_DISABLE))
    port->status |= IGB_STATUS_MASTER;
  igb_update_link(port);
}

static void write_eerd(struct igb_port *port, uint32_t value) {
  if (value & IGB_EERD_START) {
    uint32_t address = value >> 2 & 0x3fff;
    uint32_t word = address < IGB_NVM_WORDS ? port->igb->nvm[address] : 0xffff;
    value = word << 16 | address << 2 | IGB_EERD_DONE;
  }
  igb_put(port, IGB_EERD, value);
}

static void write_mdic(struct igb_port *port, uint32_t value) {
  int plugged = igb_wire_is_plugged(&port->igb->end);
  igb_put(port, IGB_MDIC, igb_phy_access(&port->phy, value, plugged));
  igb_update_link(port);
}

/* The queue whose tail or control register this is; IGB_N_QUEUES: it is another one. */
static unsigned queue_of(uint32_t reg, uint32_t (*address)(unsigned, uint32_t)) {
  for (unsigned queue = 0; queue < IGB_N_QUEUES; queue++)
    if (reg == address(queue, IGB_TAIL) || reg == address(queue, IGB_DCTL))
      return queue;
  return IGB_N_QUEUES;
}

/* A queue was given descriptors, or was enabled or disabled. */
static void queue_changed(struct igb_port *port, uint32_t reg) {
  unsigned queue;
  if ((queue = queue_of(reg, igb_rx_register)) < IGB_N_QUEUES) {
    port->rx_due |= 1u << queue;
    if (!(igb_get(port, igb_rx_register(queue, IGB_DCTL)) & IGB_QUEUE_ENABLE))
      port->rx_stopped |= 1u << queue;
  } else if ((queue = queue_of(reg, igb_tx_register)) < IGB_N_QUEUES) {
    port->tx_due |= 1u << queue;
    if (!(igb_get(port, igb_tx_register(queue, IGB_DCTL)) & IGB_QUEUE_ENABLE))
      port->tx_stopped |= 1u << queue;
  }
}

static void write_word(struct igb_port *port, uint32_t offset, uint32_t value) {
  uint32_t reg = igb_canonical(offset);
  if (igb_irq_owns(reg)) {
    igb_irq_write(port, reg, value);
    return;
  }
  if (igb_is_statistic(reg))
    return;
  switch (reg) {
  case IGB_CTRL:
    write_ctrl(port, value);
    break;
  case IGB_STATUS: /* read only: what a mapping stored there is undone */
    igb_put(port, IGB_STATUS, port->status);
    break;
  case IGB_EECD:
    igb_put(port, IGB_EECD, (value & IGB_EECD_WRITABLE) | IGB_EECD_FIXED);
    break;
  case IGB_EERD:
    write_eerd(port, value);
    break;
  case IGB_MDIC:
    write_mdic(port, value);
    break;
  case IGB_RCTL:
    igb_put(port, IGB_RCTL, value);
    igb_wire_listen(&port->igb->end, port, !!(value & IGB_RCTL_EN));
    igb_update_link(port);
    break;
  case IGB_TCTL:
    igb_put(port, IGB_TCTL, value);
    port->tx_due = ALL_QUEUES;
    break;
  default:
    igb_put(port, reg, value);
    queue_changed(port, reg);
  }
}

static uint32_t read_word(struct igb_port *port, uint32_t offset) {
  uint32_t reg = igb_canonical(offset), value;
  if (port->igb->end.has_news)
    igb_update_link(port);
  if (igb_irq_read(port, reg, &value))
    return value;
  value = igb_get(port, reg);
  if (igb_is_statistic(reg) && value)
    igb_put(port, reg, 0);
  return value;
}

/* ---- accesses --------------------------------------------------------------------------------- */

/* IOADDR at 0 names a register, IODATA at 4 is that register. */
static uint32_t read_port(struct igb_port *port, uint64_t offset) {
  if (offset == 4)
    return port->io_address < IGB_BAR_SIZE ? read_word(port, port->io_address) : 0;
  return offset ? 0 : port->io_address;
}

static void write_port(struct igb_port *port, uint64_t offset, uint32_t value) {
  if (!offset)
    port->io_address = value & ~3u;
  else if (offset == 4 && port->io_address < IGB_BAR_SIZE)
    write_word(port, port->io_address, value);
}

static uint64_t read_register(void *port, unsigned bar, uint64_t offset, unsigned size) {
  uint32_t first = (uint32_t)offset & ~3u;
  uint64_t value;
  if (bar == PORTS)
    return size == 4 ? read_port(port, offset) : 0;
  if (bar == FLASH)
    return 0;
  if (bar != MMIO) {
    value = iommufs_load(((struct igb_port *)port)->device, bar, offset & ~7ull, 8);
    return value >> 8 * (offset & 7) & (size == 8 ? UINT64_MAX : (1ull << 8 * size) - 1);
  }
  value = read_word(port, first);
  if (size == 8)
    return value | (uint64_t)read_word(port, first + 4) << 32;
  return value >> 8 * (offset & 3) & ((1ull << 8 * size) - 1);
}

static void write_register(void *port, unsigned bar, uint64_t offset, unsigned size,
                           uint64_t value) {
  uint32_t first = (uint32_t)offset & ~3u;
  unsigned shift = 8 * (offset & 3);
  if (bar == PORTS) {
    write_port(port, offset, (uint32_t)value);
  } else if (bar == MMIO && size >= 4) {
    write_word(port, first, (uint32_t)value);
    if (size == 8)
      write_word(port, first + 4, (uint32_t)(value >> 32));
  } else if (bar == MMIO) { /* the other bytes stay */
    uint32_t mask = ((1u << 8 * size) - 1) << shift;
    write_word(port, first, (igb_get(port, first) & ~mask) | ((uint32_t)value << shift & mask));
  }
}

/* Causes and masks are taken together, before what starts something. */
static void take_stores(void *port, const struct iommufs_store *stores, size_t n) {
  struct igb_mask_stores together = {0};
  for (size_t i = 0; i < n; i++)
    if (igb_irq_owns(igb_canonical((uint32_t)stores[i].offset)))
      igb_irq_collect(&together, igb_canonical((uint32_t)stores[i].offset),
                      (uint32_t)stores[i].value);
  for (size_t i = 0; i < n; i++) {
    uint32_t reg = igb_canonical((uint32_t)stores[i].offset);
    if (igb_irq_owns(reg))
      continue;
    if (together.any && reg >= IGB_RCTL)
      igb_irq_store(port, &together);
    write_word(port, reg, (uint32_t)stores[i].value);
  }
  if (together.any)
    igb_irq_store(port, &together);
}

static int poll(void *port) { return igb_engine_poll(port); }

/* ---- the model -------------------------------------------------------------------------------- */

static void end(void *port_) {
  struct igb_port *port = port_;
  igb_wire_close(&port->igb->end, port, port->attends);
  for (unsigned queue = 0; queue < IGB_N_QUEUES; queue++) {
    igb_tx_forget(&port->tx[queue]);
    igb_rx_forget(port, queue);
  }
  if (port->record)
    fclose(port->record);
  igb_replay_close(port->replay);
  alloc_free(port);
}

static void *start(void *igb, struct iommufs_device *device) {
  struct igb_port *port = alloc_zeroed(sizeof *port);
  if (!port)
    return NULL;
  port->device = device;
  port->igb = igb;
  igb_wire_open(&port->igb->end, port);
  igb_phy_reset(&port->phy);
  restart(port);
  if (igb_registers_watch(port)) {
    end(port);
    return NULL;
  }
  return port;
}

static void discard(struct igb *igb) {
  alloc_free(igb->wire);
  alloc_free(igb->pcap_out);
  alloc_free(igb->pcap_in);
  alloc_free(igb);
}

static void destroy(void *igb_) {
  struct igb *igb = igb_;
  if (igb->tap)
    igb_tap_close(igb->tap);
  igb_wire_leave(&igb->end);
  discard(igb);
}

/* Of "key=value"; NULL: it is another key. */
static const char *value_of(const char *option, const char *key) {
  size_t length = strlen(key);
  return !strncmp(option, key, length) && option[length] == '=' ? option + length + 1 : NULL;
}

static int copy_text(char **to, const char *text) {
  size_t size = strlen(text) + 1;
  if ((*to = alloc_zeroed(size)))
    memcpy(*to, text, size);
  return *to != NULL;
}

/* The last byte of a default address tells the ends of a wire apart. */
static void set_mac(struct igb *igb, const char *text) {
  uint8_t mac[] = {0x52, 0x54, 0x00, 0x82, 0x35, (uint8_t)(0x76 + igb->end.index)};
  for (unsigned i = 0; text && i < 6; i++)
    mac[i] = (uint8_t)strtoul(text + 3 * i, NULL, 16);
  igb_nvm_fill(igb->nvm, mac);
}

struct options {
  const char *wire, *mac, *pcap_out, *pcap_in, *tap; /* NULL: not given */
};

/* wire=NAME  mac=xx:xx:xx:xx:xx:xx  pcap_out=PATH  pcap_in=PATH  tap=NAME, all checked by
 * devices/igb. */
static struct options read_options(const char *const *options) {
  struct options found = {0};
  const char *value;
  for (; *options; options++) {
    if ((value = value_of(*options, "wire")))
      found.wire = value;
    else if ((value = value_of(*options, "mac")))
      found.mac = value;
    else if ((value = value_of(*options, "pcap_out")))
      found.pcap_out = value;
    else if ((value = value_of(*options, "pcap_in")))
      found.pcap_in = value;
    else if ((value = value_of(*options, "tap")))
      found.tap = value;
  }
  return found;
}

/* Whether the file that is to be replayed is there now. */
static int check_replay(const char *path, char *error, size_t size) {
  const char *why;
  struct igb_replay *replay = igb_replay_open(path, &why);
  if (!replay)
    snprintf(error, size, "pcap_in: %s: %s", path, why);
  igb_replay_close(replay);
  return replay != NULL;
}

static void *create(const char *const *given, char *error, size_t size) {
  struct options options = read_options(given);
  struct igb *igb = alloc_zeroed(sizeof *igb);
  snprintf(error, size, "no memory");
  if (!igb)
    return NULL;
  if ((options.wire && !copy_text(&igb->wire, options.wire)) ||
      (options.pcap_out && !copy_text(&igb->pcap_out, options.pcap_out)) ||
      (options.pcap_in && !copy_text(&igb->pcap_in, options.pcap_in)) ||
      (options.pcap_in && !check_replay(options.pcap_in, error, size)) ||
      (options.tap && !(igb->tap = igb_tap_open(options.tap, &igb->end, error, size)))) {
    discard(igb);
    return NULL;
  }
  igb_wire_join(&igb->end, igb->wire, igb->tap || igb->pcap_in);
  set_mac(igb, options.mac);
  return igb;
}

const struct iommufs_model igb_model = {
    .abi = IOMMUFS_DEVICE_ABI,
    .create = create,
    .destroy = destroy,
    .start = start,
    .end = end,
    .read = read_register,
    .write = write_register,
    .stores = take_stores,
    .poll = poll,
};
