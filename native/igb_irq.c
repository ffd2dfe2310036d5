/*
 * Interrupt causes, masks and vectors of an 82576 (igb.h; 7.3, 8.8). All with the lock held.
 *
 * Causes that are not of a queue are in ICR, masked by IMS. Extended causes are in EICR, masked by
 * EIMS: with multiple MSI-X vectors (GPIE) one bit for each vector, and IVAR says which cause has
 * which; without, ICR is bit 31 and everything shares one line or message. Each assertion of an
 * enabled cause sends a message, whether its bit was set before or not. Throttling (EITR) is left out.
 *
 * The cause of a frame is there before its descriptor is, its message follows. A client that sees the
 * descriptor and clears the cause so really has cleared it, and is not interrupted.
 *
 * A client whose mapping loads ICR does not clear it, because nobody notices. So the causes that were
 * announced by an interrupt are cleared by its next store to a mask: that is what follows the load.
 */
#include "igb.h"

#define IVAR_VALID 0x80u
#define OTHER_BYTE 1u /* of IVAR_MISC */

/* A mask after a store that clears bits and one that sets some, in an unknown order. Each of the two is
 * taken to have changed something, so what is in both is as before. Clearing all is how drivers begin. */
uint32_t igb_mask_after(uint32_t mask, uint32_t cleared, uint32_t set) {
  uint32_t both = cleared & set;
  return cleared == UINT32_MAX ? set : (mask & ~(cleared & ~both)) | (set & ~both);
}

static int is_multiple(struct igb_port *port) {
  return !!(igb_get(port, IGB_GPIE) & IGB_GPIE_MULTIPLE_MSIX);
}

static int is_asserted(const struct igb_irq *irq) {
  return irq->icr & irq->ims || irq->eicr & irq->eims;
}

/* ---- what the client sees --------------------------------------------------------------------- */

static uint32_t eicr_value(struct igb_port *port) {
  const struct igb_irq *irq = &port->irq;
  return irq->eicr | (irq->icr & irq->ims && !is_multiple(port) ? IGB_EICR_OTHER : 0);
}

/* Put a value there; a store of the client's that is found clears what it says. */
static void put_eicr(struct igb_port *port, uint32_t value) {
  struct igb_irq *irq = &port->irq;
  uint32_t found = igb_swap(port, IGB_EICR, value);
  if (found != irq->shown)
    irq->eicr &= ~found;
  irq->shown = value;
}

/* Set bits, and let loads see the register. A store that is found there is older than they. */
static void show_eicr(struct igb_port *port, uint32_t new) {
  put_eicr(port, eicr_value(port) | new);
  port->irq.eicr |= new;
  while (eicr_value(port) != port->irq.shown)
    put_eicr(port, eicr_value(port));
}

static void publish(struct igb_port *port) {
  const struct igb_irq *irq = &port->irq;
  int asserted = is_asserted(irq);
  igb_put(port, IGB_ICR, irq->icr | (asserted ? IGB_INT_ASSERTED : 0));
  show_eicr(port, 0);
  if (!asserted && !is_multiple(port))
    iommufs_line(port->device, 0);
}

void igb_irq_reset(struct igb_port *port) {
  port->irq = (struct igb_irq){0};
  iommufs_line(port->device, 0);
}

/* ---- causes ----------------------------------------------------------------------------------- */

/* The bit of EICR that IVAR gives a cause; 0: none. */
static uint32_t vector_of(struct igb_port *port, uint32_t reg, unsigned byte) {
  uint32_t entry = igb_get(port, reg) >> 8 * byte & 0xff;
  return entry & IVAR_VALID ? 1u << (entry & 0x1f) : 0;
}

static uint32_t queue_vector(struct igb_port *port, unsigned queue, unsigned is_tx) {
  return vector_of(port, IGB_IVAR + 4 * (queue & 7), is_tx + (queue >> 3) * 2);
}

static void send_messages(struct igb_port *port, uint32_t due) {
  struct igb_irq *irq = &port->irq;
  irq->eicr &= ~(due & igb_get(port, IGB_EIAC));
  if (igb_get(port, IGB_GPIE) & IGB_GPIE_EIAME)
    irq->eims &= ~(due & igb_get(port, IGB_EIAM));
  for (unsigned vector = 0; due; vector++, due >>= 1)
    if (due & 1)
      iommufs_message(port->device, vector);
}

/* The one message, or the line; something that is enabled has been asserted. */
static void interrupt(struct igb_port *port) {
  port->irq.announced |= port->irq.icr & port->irq.ims;
  if (iommufs_messages_on(port->device))
    iommufs_message(port->device, 0);
  else
    iommufs_line(port->device, 1);
}

static void extended(struct igb_port *port, uint32_t bits) {
  show_eicr(port, bits);
  uint32_t due = bits & port->irq.eims & ~port->irq.arriving;
  if (due && is_multiple(port))
    send_messages(port, due);
  else if (due)
    interrupt(port);
  publish(port);
}

void igb_irq_cause(struct igb_port *port, uint32_t bits) {
  struct igb_irq *irq = &port->irq;
  irq->icr |= bits;
  if (bits & irq->ims && is_multiple(port)) {
    irq->announced |= irq->icr & irq->ims;
    extended(port, vector_of(port, IGB_IVAR_MISC, OTHER_BYTE));
  } else if (bits & irq->ims)
    interrupt(port);
  publish(port);
}

void igb_irq_queues(struct igb_port *port, uint32_t received, uint32_t sent) {
  uint32_t bits = 0;
  show_eicr(port, 0); /* the client may have seen the descriptors and cleared their cause */
  for (unsigned queue = 0; queue < IGB_N_QUEUES; queue++) {
    if (sent >> queue & 1)
      bits |= queue_vector(port, queue, 1);
    if (received >> queue & 1)
      bits |= queue_vector(port, queue, 0) & port->irq.eicr;
  }
  if (bits)
    extended(port, bits);
  if (!is_multiple(port))
    igb_irq_cause(port, (received ? IGB_RXDW : 0) | (sent ? IGB_TXDW : 0));
}

void igb_irq_arriving(struct igb_port *port, unsigned queue) {
  uint32_t bits = queue_vector(port, queue, 0);
  port->irq.arriving |= bits;
  if (bits)
    show_eicr(port, bits);
}

void igb_irq_arrived(struct igb_port *port, unsigned queue) {
  port->irq.arriving &= ~queue_vector(port, queue, 0);
}

/* ---- registers -------------------------------------------------------------------------------- */

int igb_irq_owns(uint32_t reg) {
  return reg == IGB_ICR || reg == IGB_EICR || reg == IGB_IMC || reg == IGB_IMS || reg == IGB_EIMC ||
         reg == IGB_EIMS || reg == IGB_ICS || reg == IGB_EICS;
}

static uint32_t read_icr(struct igb_port *port) {
  struct igb_irq *irq = &port->irq;
  int asserted = is_asserted(irq);
  uint32_t value = irq->icr | (asserted ? IGB_INT_ASSERTED : 0);
  if (asserted && igb_get(port, IGB_CTRL_EXT) & IGB_CTRL_EXT_IAME)
    irq->ims &= ~igb_get(port, IGB_IAM);
  if (asserted || !irq->ims || igb_get(port, IGB_GPIE) & IGB_GPIE_NSICR)
    irq->icr = 0;
  publish(port);
  return value;
}

int igb_irq_read(struct igb_port *port, uint32_t reg, uint32_t *value) {
  struct igb_irq *irq = &port->irq;
  switch (reg) {
  case IGB_ICR:
    *value = read_icr(port);
    return 1;
  case IGB_EICR:
    *value = eicr_value(port);
    irq->eicr = 0;
    publish(port);
    return 1;
  case IGB_IMS:
    *value = irq->ims;
    return 1;
  case IGB_EIMS:
    *value = irq->eims;
    return 1;
  default:
    return 0;
  }
}

static void mask(struct igb_port *port, uint32_t cleared, uint32_t set) {
  struct igb_irq *irq = &port->irq;
  irq->ims = igb_mask_after(irq->ims, cleared, set);
  if (irq->icr & irq->ims & set)
    igb_irq_cause(port, irq->icr & irq->ims & set);
}

static void mask_extended(struct igb_port *port, uint32_t cleared, uint32_t set) {
  struct igb_irq *irq = &port->irq;
  irq->eims = igb_mask_after(irq->eims, cleared, set);
  if (irq->eicr & irq->eims & set)
    extended(port, irq->eicr & irq->eims & set);
}

void igb_irq_write(struct igb_port *port, uint32_t reg, uint32_t value) {
  struct igb_irq *irq = &port->irq;
  switch (reg) {
  case IGB_ICR:
    irq->icr &= ~value;
    break;
  case IGB_EICR:
    irq->eicr &= ~value;
    break;
  case IGB_ICS:
    igb_irq_cause(port, value);
    break;
  case IGB_EICS:
    extended(port, value);
    break;
  case IGB_IMC:
    mask(port, value, 0);
    break;
  case IGB_IMS:
    mask(port, 0, value);
    break;
  case IGB_EIMC:
    mask_extended(port, value, 0);
    break;
  default:
    mask_extended(port, 0, value);
    break;
  }
  publish(port);
}

/* ---- stores to a mapping ---------------------------------------------------------------------- */

void igb_irq_collect(struct igb_mask_stores *stores, uint32_t reg, uint32_t value) {
  stores->any = 1;
  switch (reg) {
  case IGB_ICR:
    stores->icr |= value;
    break;
  case IGB_EICR:
    stores->eicr = value;
    stores->has_eicr = 1;
    break;
  case IGB_IMC:
    stores->imc |= value;
    stores->has_mask = 1;
    break;
  case IGB_IMS:
    stores->ims |= value;
    stores->has_mask = 1;
    break;
  case IGB_EIMC:
    stores->eimc |= value;
    break;
  case IGB_EIMS:
    stores->eims |= value;
    break;
  case IGB_ICS:
    stores->ics |= value;
    break;
  default:
    stores->eics |= value;
    break;
  }
}

/* Words that start something are 0 to loads, so that each store is seen. */
static void clear_words(struct igb_port *port) {
  static const uint32_t regs[] = {IGB_IMC, IGB_IMS, IGB_EIMC, IGB_EIMS, IGB_ICS, IGB_EICS,
                                  0x1504,  0x1508,  0x150c};
  for (unsigned i = 0; i < sizeof regs / sizeof *regs; i++)
    if (igb_get(port, regs[i]))
      iommufs_store(port->device, 0, regs[i], 4, 0);
}

void igb_irq_store(struct igb_port *port, struct igb_mask_stores *stores) {
  struct igb_irq *irq = &port->irq;
  clear_words(port);
  irq->icr &= ~stores->icr;
  if (stores->has_eicr) {
    irq->shown = stores->eicr;
    irq->eicr &= ~stores->eicr;
    publish(port);
  }
  if (stores->has_mask) {
    irq->icr &= ~irq->announced;
    irq->announced = 0;
    mask(port, stores->imc, stores->ims);
  }
  if (stores->eimc | stores->eims)
    mask_extended(port, stores->eimc, stores->eims);
  if (stores->ics)
    igb_irq_cause(port, stores->ics);
  if (stores->eics)
    extended(port, stores->eics);
  publish(port);
  *stores = (struct igb_mask_stores){0};
}
