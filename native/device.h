/*
 * A device model in C: the contract between a model and the machine around it. docs/native-models.md
 * says when to write one and how it is found; all that its author needs is here, and this file needs
 * nothing else of iommufs.
 *
 * Words. A *model* is what a function keeps for as long as the machine is there (the content of a
 * disk). A *life* is one power-on of it: it begins when a client opens the function and with every
 * reset, and ends with the next reset or when the client is gone. Functions return 0 or -errno.
 *
 * Threads. Each life has a thread of its own, which calls poll(). A client's accesses by pread() and
 * pwrite() come from another thread, so what read() and write() share with poll() is kept under the
 * lock of the device. read() and write() are called with it held and must not wait: no DMA, no file.
 * Whoever holds it may take it again. poll() is called without it.
 *
 * The end of a life may come at any time, also during poll(). From then on every call of the ended
 * life does nothing and says -ECANCELED; poll() returns when it can, and end() follows.
 */
#ifndef IOMMUFS_DEVICE_H
#define IOMMUFS_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#define IOMMUFS_DEVICE_ABI 1

struct iommufs_device; /* one life, as its model sees it */

/* What a client's mapping stored in a watched word. */
struct iommufs_store {
  uint64_t offset, value;
  unsigned bar, size;
};

/* What a model gives: a constant object, whose name is that of its symbol. */
struct iommufs_model {
  uint32_t abi; /* IOMMUFS_DEVICE_ABI */

  /* Make what outlives resets. options: "key=value" each, the last one followed by NULL. NULL on
   * failure, `error` then holds a line that says why. Not called at the same time as another. */
  void *(*create)(const char *const *options, char *error, size_t size);
  void (*destroy)(void *model);

  /* Begin a life: lay out the registers with iommufs_store(), then watch them. Holds the lock. NULL:
   * no memory. A life that could not be ended in time (a client's memory that does not answer) may
   * still be running when the next one begins. */
  void *(*start)(void *model, struct iommufs_device *device);
  void (*end)(void *state); /* the last call of a life, by its thread */

  /* An access of `size` (1, 2, 4 or 8) bytes at a multiple of size. Stores to a mapping come as
   * writes too, for what is watched: the word as a whole. read may be NULL: BAR memory is read. */
  uint64_t (*read)(void *state, unsigned bar, uint64_t offset, unsigned size);
  void (*write)(void *state, unsigned bar, uint64_t offset, unsigned size, uint64_t value);

  /* Stores to a mapping that were seen together, in the order of the watches, for a model that has to
   * tell them from write(), or to see them at once. NULL: each of them comes as a write(). */
  void (*stores)(void *state, const struct iommufs_store *stores, size_t n);

  /* Do some work, at most some tens of microseconds: 0 if there was none, in which case the thread
   * looks less and less often until a register changes or iommufs_wake(). */
  int (*poll)(void *state);
};

/* What the machine gives. Call these through the functions below. */
struct iommufs_device_calls {
  int (*dma_read)(struct iommufs_device *, uint64_t iova, void *buf, size_t length);
  int (*dma_write)(struct iommufs_device *, uint64_t iova, const void *buf, size_t length);
  void (*store)(struct iommufs_device *, unsigned bar, uint64_t offset, unsigned size,
                uint64_t value);
  uint64_t (*load)(struct iommufs_device *, unsigned bar, uint64_t offset, unsigned size);
  uint64_t (*exchange)(struct iommufs_device *, unsigned bar, uint64_t offset, unsigned size,
                       uint64_t value);
  int (*watch)(struct iommufs_device *, unsigned bar, uint64_t offset, unsigned size);
  void (*message)(struct iommufs_device *, unsigned vector);
  void (*line)(struct iommufs_device *, int level);
  int (*messages_on)(struct iommufs_device *);
  void (*lock)(struct iommufs_device *);
  void (*unlock)(struct iommufs_device *);
  void (*wake)(struct iommufs_device *);
  int (*ended)(struct iommufs_device *);
  void (*report)(struct iommufs_device *, const char *text);
  int (*dma_read_or_ask)(struct iommufs_device *, uint64_t iova, void *buf, size_t length,
                         uint32_t *request);
  int (*dma_write_or_ask)(struct iommufs_device *, uint64_t iova, const void *buf, size_t length,
                          uint32_t *request);
  int (*page_answer)(struct iommufs_device *, uint32_t request);
  void (*forget_page)(struct iommufs_device *, uint32_t request);
};

struct iommufs_device {
  const struct iommufs_device_calls *calls;
};

/* ---- client memory: from poll() only ---------------------------------------------------------
 *
 * Through the page table that the function is attached to, if bus mastering is on. -EFAULT: the
 * IOMMU refused it, which is reported by then; bytes before the one refused may have moved. It may
 * wait for a client's memory. When an unmap of the memory, or a detach, has returned to the client,
 * no DMA touches it any more, unless it is stuck in memory that the client keeps from being written.
 */
static inline int iommufs_dma_read(struct iommufs_device *device, uint64_t iova, void *buf,
                                   size_t length) {
  return device->calls->dma_read(device, iova, buf, length);
}

static inline int iommufs_dma_write(struct iommufs_device *device, uint64_t iova, const void *buf,
                                    size_t length) {
  return device->calls->dma_write(device, iova, buf, length);
}

/* ---- pages on request: from poll() only -------------------------------------------------------
 *
 * A function with PRI in its config space may ask for a page that the IOMMU does not let it reach,
 * if its page table has a fault queue. As above, but -EINPROGRESS: that was done, and *request names
 * it (never 0); the DMA is to be done again, all of it, when the client has answered, which gets
 * poll() called. It may never answer, so a device goes on with something else. -EAGAIN: as many are
 * asked for as can be. Without PRI it is the same as above.
 */
#define IOMMUFS_PAGE_REQUESTS 64 /* at a time */

static inline int iommufs_dma_read_or_ask(struct iommufs_device *device, uint64_t iova, void *buf,
                                          size_t length, uint32_t *request) {
  return device->calls->dma_read_or_ask(device, iova, buf, length, request);
}

static inline int iommufs_dma_write_or_ask(struct iommufs_device *device, uint64_t iova,
                                           const void *buf, size_t length, uint32_t *request) {
  return device->calls->dma_write_or_ask(device, iova, buf, length, request);
}

/* -EINPROGRESS: no answer yet. With any other the request is over: 0, try again; -EFAULT, the page
 * will not come, which is reported by then. */
static inline int iommufs_page_answer(struct iommufs_device *device, uint32_t request) {
  return device->calls->page_answer(device, request);
}

/* The answer does not matter any more. */
static inline void iommufs_forget_page(struct iommufs_device *device, uint32_t request) {
  device->calls->forget_page(device, request);
}

/* ---- BAR memory: what clients' mappings of a mappable BAR show -------------------------------- */

/* size: 4 or 8, of a watched word just that of the watch; offset: a multiple of it. */
static inline void iommufs_store(struct iommufs_device *device, unsigned bar, uint64_t offset,
                                 unsigned size, uint64_t value) {
  device->calls->store(device, bar, offset, size, value);
}

static inline uint64_t iommufs_load(struct iommufs_device *device, unsigned bar, uint64_t offset,
                                    unsigned size) {
  return device->calls->load(device, bar, offset, size);
}

/* iommufs_store(), and what was there before. Where that was stored by a client and not reported yet,
 * the model knows it now, and it will not be. For registers whose bits a client clears. */
static inline uint64_t iommufs_exchange(struct iommufs_device *device, unsigned bar,
                                        uint64_t offset, unsigned size, uint64_t value) {
  return device->calls->exchange(device, bar, offset, size, value);
}

/* Have write() called for stores of a client to this word; 4 or 8 bytes. What is there now, or what
 * iommufs_store() leaves there, is no store, nor is storing the same value again, which cannot be
 * seen. Of stores seen together, those to words watched earlier come first; and if a client stores
 * to an earlier one and then to a later one, the earlier is never reported after it. */
static inline int iommufs_watch(struct iommufs_device *device, unsigned bar, uint64_t offset,
                                unsigned size) {
  return device->calls->watch(device, bar, offset, size);
}

/* ---- interrupts ------------------------------------------------------------------------------- */

/* Send a message-signalled interrupt; it is a write to memory, so it needs bus mastering. */
static inline void iommufs_message(struct iommufs_device *device, unsigned vector) {
  device->calls->message(device, vector);
}

/* Drive the INTx line. */
static inline void iommufs_line(struct iommufs_device *device, int level) {
  device->calls->line(device, level);
}

/* Whether MSI or MSI-X is switched on: else there is only the line. */
static inline int iommufs_messages_on(struct iommufs_device *device) {
  return device->calls->messages_on(device);
}

/* ---- the rest --------------------------------------------------------------------------------- */

static inline void iommufs_lock(struct iommufs_device *device) { device->calls->lock(device); }
static inline void iommufs_unlock(struct iommufs_device *device) { device->calls->unlock(device); }

/* There is work: have poll() called soon. */
static inline void iommufs_wake(struct iommufs_device *device) { device->calls->wake(device); }

/* Whether this life is over. */
static inline int iommufs_ended(struct iommufs_device *device) {
  return device->calls->ended(device);
}

/* Say something about the device in the log: one line. */
static inline void iommufs_report(struct iommufs_device *device, const char *text) {
  device->calls->report(device, text);
}

#endif
