/*
 * Interrupts of models in C, and what Python has to hear of them.
 *
 * A message goes to its eventfd from whatever thread sends it. What is decided in Python, the level
 * of INTx and messages of an MSI with mask bits, goes there as an event, as do reports for the log
 * and pages to be asked for.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "alloc.h"
#include "device_host.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct iofs_device *talkers; /* devices with events */
static int event_fd = -1;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init(void) { event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

/* ---- events; all under the lock --------------------------------------------------------------- */

static void queue(struct iofs_device *device) {
  pthread_once(&once, init);
  if (device->events.queued)
    return;
  if (!talkers)
    eventfd_write(event_fd, 1);
  device->events.queued = 1;
  device->events.next = talkers;
  talkers = device;
}

static void unqueue(struct iofs_device *device) {
  eventfd_t value;
  struct iofs_device **at = &talkers;
  if (!device->events.queued)
    return;
  while (*at != device)
    at = &(*at)->events.next;
  *at = device->events.next;
  device->events.queued = 0;
  if (!talkers)
    eventfd_read(event_fd, &value);
}

void device_events_forget(struct iofs_device *device) {
  pthread_mutex_lock(&lock);
  unqueue(device);
  pthread_mutex_unlock(&lock);
}

/* Take one event out; 0: the device has none. */
static int take(struct device_events *events, struct iofs_device_event *out) {
  if (events->line_changed) {
    events->line_changed = 0;
    out->kind = IOFS_DEVICE_LINE;
  } else if (events->messages) {
    out->kind = IOFS_DEVICE_MESSAGE;
    out->vector = (uint32_t)__builtin_ctz(events->messages);
    events->messages &= events->messages - 1;
  } else if (events->n_pages) {
    out->kind = IOFS_DEVICE_PAGE;
    out->iova = events->pages->iova;
    out->write = events->pages->write;
    out->request = events->pages->request;
    memmove(events->pages, events->pages + 1, --events->n_pages * sizeof *events->pages);
  } else if (*events->report) {
    out->kind = IOFS_DEVICE_REPORT;
    out->n_lost = events->n_reports_lost;
    snprintf(out->text, sizeof out->text, "%s", events->report);
    *events->report = 0;
    events->n_reports_lost = 0;
  } else
    return 0;
  return 1;
}

int iofs_device_event_fd(void) {
  pthread_once(&once, init);
  return event_fd;
}

int iofs_device_next_event(struct iofs_device_event *out) {
  int found = 0;
  memset(out, 0, sizeof *out);
  pthread_mutex_lock(&lock);
  while (talkers && !found) {
    out->cookie = talkers->cookie;
    if (!(found = take(&talkers->events, out)))
      unqueue(talkers);
  }
  pthread_mutex_unlock(&lock);
  return found;
}

void device_report(struct iommufs_device *handle, const char *text) {
  struct iofs_device *device = life_of(handle)->device;
  struct device_events *events = &device->events;
  pthread_mutex_lock(&lock);
  if (*events->report)
    events->n_reports_lost++;
  else
    snprintf(events->report, sizeof events->report, "%s", text);
  queue(device);
  pthread_mutex_unlock(&lock);
}

int device_events_ask(struct iofs_device *device, const struct page_event *page) {
  struct device_events *events = &device->events;
  pthread_mutex_lock(&lock);
  int room = events->n_pages < IOMMUFS_PAGE_REQUESTS;
  if (room) {
    events->pages[events->n_pages++] = *page;
    queue(device);
  }
  pthread_mutex_unlock(&lock);
  return room ? 0 : -EAGAIN;
}

void device_events_drop_pages(struct iofs_device *device) {
  pthread_mutex_lock(&lock);
  device->events.n_pages = 0;
  pthread_mutex_unlock(&lock);
}

/* ---- messages --------------------------------------------------------------------------------- */

void device_irqs_init(struct device_irqs *irqs) {
  pthread_mutex_init(&irqs->lock, NULL);
  irqs->mode = IOFS_MESSAGES_OFF;
}

void device_irqs_destroy(struct device_irqs *irqs) {
  pthread_mutex_destroy(&irqs->lock);
  alloc_free(irqs->vectors);
}

void iofs_device_set_messages(struct iofs_device *device, uint32_t mode) {
  pthread_mutex_lock(&device->irqs.lock);
  device->irqs.mode = (int)mode;
  pthread_mutex_unlock(&device->irqs.lock);
}

static int grow(struct device_irqs *irqs, unsigned n) {
  int *more = alloc_array(n, sizeof *more);
  if (!more)
    return -ENOMEM;
  for (unsigned i = 0; i < n; i++)
    more[i] = i < irqs->n_vectors ? irqs->vectors[i] : -1;
  alloc_free(irqs->vectors);
  irqs->vectors = more;
  irqs->n_vectors = n;
  return 0;
}

int iofs_device_set_vector(struct iofs_device *device, uint32_t vector, int fd) {
  struct device_irqs *irqs = &device->irqs;
  int err = 0;
  pthread_mutex_lock(&irqs->lock);
  if (vector >= irqs->n_vectors && fd >= 0)
    err = grow(irqs, vector + 1);
  if (!err && vector < irqs->n_vectors)
    irqs->vectors[vector] = fd;
  pthread_mutex_unlock(&irqs->lock);
  return err;
}

void device_message(struct iommufs_device *handle, unsigned vector) {
  const struct life *life = life_of(handle);
  struct iofs_device *device = life->device;
  struct device_irqs *irqs = &device->irqs;
  if (life->ended || !device->bus_master)
    return;
  pthread_mutex_lock(&irqs->lock);
  if (irqs->mode == IOFS_MESSAGES_DIRECT && vector < irqs->n_vectors && irqs->vectors[vector] >= 0)
    iofs_eventfd_signal(irqs->vectors[vector]);
  if (irqs->mode == IOFS_MESSAGES_BY_EVENT && vector < 32) {
    pthread_mutex_lock(&lock);
    device->events.messages |= 1u << vector;
    queue(device);
    pthread_mutex_unlock(&lock);
  }
  pthread_mutex_unlock(&irqs->lock);
}

int device_messages_on(struct iommufs_device *handle) {
  struct device_irqs *irqs = &life_of(handle)->device->irqs;
  pthread_mutex_lock(&irqs->lock);
  int on = irqs->mode != IOFS_MESSAGES_OFF;
  pthread_mutex_unlock(&irqs->lock);
  return on;
}

/* ---- INTx ------------------------------------------------------------------------------------- */

void device_line(struct iommufs_device *handle, int level) {
  const struct life *life = life_of(handle);
  struct iofs_device *device = life->device;
  struct device_irqs *irqs = &device->irqs;
  pthread_mutex_lock(&irqs->lock);
  if (!life->ended && irqs->level != !!level) {
    irqs->level = !!level;
    pthread_mutex_lock(&lock);
    device->events.line_changed = 1;
    queue(device);
    pthread_mutex_unlock(&lock);
  }
  pthread_mutex_unlock(&irqs->lock);
}

/* Power is off. */
void device_drop_line(struct iofs_device *device) {
  pthread_mutex_lock(&device->irqs.lock);
  device->irqs.level = 0;
  pthread_mutex_unlock(&device->irqs.lock);
}

int iofs_device_line(struct iofs_device *device) {
  pthread_mutex_lock(&device->irqs.lock);
  int level = device->irqs.level;
  pthread_mutex_unlock(&device->irqs.lock);
  return level;
}
