/*
 * The machine around models in C (device.h), shared by the device_*.c.
 *
 * Locks, in this order: that of a device, of its route, of its interrupts, of all events.
 */
#ifndef IOFS_DEVICE_HOST_H
#define IOFS_DEVICE_HOST_H

#include <pthread.h>

#include "device.h"
#include "iommufs.h"

#define N_BARS 6

struct bar {
  unsigned char *memory; /* NULL: clients cannot map it */
  uint64_t size;
};

/* What Python has still to hear of; under the lock of device_events.c. */
struct device_events {
  struct iofs_device *next; /* of those with something to say */
  int queued, line_changed;
  uint32_t messages; /* MSI vectors, a bit each */
  char report[128];  /* empty: none */
  uint64_t n_reports_lost;
  unsigned n_pages; /* to be asked for, the first ones first */
  struct page_event {
    uint64_t iova;
    uint32_t request, write;
  } pages[IOMMUFS_PAGE_REQUESTS];
};

/* A page that a life has asked for; 0: none. */
struct page_request {
  uint32_t request;
  int answer; /* -EINPROGRESS, 0, -EFAULT */
  struct iofs_dma_fault fault;
  size_t length; /* of the DMA that met it */
};

struct device_irqs {
  pthread_mutex_t lock;
  int mode;       /* enum iofs_device_messages */
  int *vectors;   /* eventfds, -1 where there is none */
  unsigned n_vectors;
  int level; /* of the INTx line */
};

struct iofs_device {
  _Atomic uint32_t refs; /* one for Python, one for each life */
  const struct iommufs_model *model;
  void *instance; /* what model->create() made */
  void *library;
  uint64_t cookie;
  pthread_mutex_t lock; /* recursive; what read() and write() of the model run under */
  _Atomic uint32_t n_visitors; /* threads that want it and are not that of the life */
  struct bar bars[N_BARS];
  struct life *life; /* NULL: nobody has opened the function */
  unsigned n_left_behind; /* lives that were over before their thread was */
  _Atomic int bus_master;
  _Atomic int asks; /* it has PRI */
  uint32_t last_request;
  struct iofs_route *route; /* under the lock */
  struct iofs_refused *refused;
  struct device_irqs irqs;
  struct device_events events;
};

/* Eight bytes of BAR memory with one or two watched words in them, neighbours in the order in which
 * they were watched. */
struct chunk {
  const uint64_t *memory;
  uint64_t seen, mask; /* mask: the bits that are watched */
  uint64_t loaded;     /* by the scan that goes on */
  size_t first_word, n_words;
};

struct word {
  unsigned char *memory;
  uint64_t offset;
  uint64_t missed; /* a store of a client that one of the model fell upon, if has_missed */
  size_t chunk;
  uint32_t bar, size;
  int has_missed;
};

/* One power-on. All but `ended` is under the lock of the device. */
struct life {
  struct iommufs_device handle; /* first: what the model is given */
  struct iofs_device *device;
  struct iofs_route *route; /* NULL: none */
  void *state;
  _Atomic int ended;
  int woken;
  int *finished; /* of whoever waits for the end; may be NULL */
  pid_t thread;  /* 0 until it runs */
  pthread_cond_t wake;
  struct word *words;
  struct iommufs_store *stores; /* room for one of each word */
  struct chunk *chunks;
  size_t n_words, n_chunks, n_missed;
  struct { /* what the thread holds while it does DMA; domain: NULL if it does not */
    struct iofs_domain *domain;
    unsigned phase; /* of the route */
    int place;      /* among its users */
  } dma;
  struct page_request pages[IOMMUFS_PAGE_REQUESTS];
};

static inline struct life *life_of(struct iommufs_device *handle) {
  return (struct life *)(void *)handle;
}

/* device_life.c */
int life_begin(struct iofs_device *device); /* ENOMEM, EAGAIN: no thread, or too many left behind */
void life_stop(struct iofs_device *device); /* waits a moment for its end */
void life_scan(struct life *life);
void life_wake(struct life *life);
void life_store(struct iommufs_device *handle, unsigned bar, uint64_t offset, unsigned size,
                uint64_t value);
uint64_t life_exchange(struct iommufs_device *handle, unsigned bar, uint64_t offset, unsigned size,
                       uint64_t value);
uint64_t life_load(struct iommufs_device *handle, unsigned bar, uint64_t offset, unsigned size);
int life_watch(struct iommufs_device *handle, unsigned bar, uint64_t offset, unsigned size);

/* device.c */
void device_put(struct iofs_device *device);
void device_enter(struct iofs_device *device); /* take its lock before its own thread does */
void device_leave(struct iofs_device *device);
extern const struct iommufs_device_calls device_calls;

/* device_dma.c */
int device_dma_read(struct iommufs_device *handle, uint64_t iova, void *buf, size_t length);
int device_dma_write(struct iommufs_device *handle, uint64_t iova, const void *buf, size_t length);
int device_dma_read_or_ask(struct iommufs_device *handle, uint64_t iova, void *buf, size_t length,
                           uint32_t *request);
int device_dma_write_or_ask(struct iommufs_device *handle, uint64_t iova, const void *buf,
                            size_t length, uint32_t *request);
void device_dma_rest(struct life *life); /* for now it does no more */
void route_get(struct iofs_route *route);

/* device_page.c */
int device_page_ask(struct life *life, const struct iofs_dma_fault *fault, size_t length,
                    uint32_t *request);
int device_page_answer(struct iommufs_device *handle, uint32_t request);
void device_page_forget(struct iommufs_device *handle, uint32_t request);

/* device_irq.c */
void device_irqs_init(struct device_irqs *irqs);
void device_irqs_destroy(struct device_irqs *irqs);
void device_message(struct iommufs_device *handle, unsigned vector);
void device_line(struct iommufs_device *handle, int level);
void device_drop_line(struct iofs_device *device);
int device_messages_on(struct iommufs_device *handle);
void device_report(struct iommufs_device *handle, const char *text);
int device_events_ask(struct iofs_device *device, const struct page_event *page); /* EAGAIN */
void device_events_drop_pages(struct iofs_device *device); /* of a life that is over */
void device_events_forget(struct iofs_device *device);

#endif
