/* Models in C as Python sees them: made, opened, read and written (see device.h, iommufs.h). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "alloc.h"
#include "device_host.h"
#include "igb.h"
#include "nvme.h"

static const struct {
  const char *name;
  const struct iommufs_model *model;
} built_in[] = {{"igb", &igb_model}, {"nvme", &nvme_model}};

static const struct iommufs_model *find_built_in(const char *name) {
  for (size_t i = 0; i < sizeof built_in / sizeof *built_in; i++)
    if (!strcmp(name, built_in[i].name))
      return built_in[i].model;
  return NULL;
}

/* The model of that name, from a library or among our own; NULL: `error` says why not. */
static const struct iommufs_model *find(const char *library, const char *name, void **handle,
                                        char *error, size_t size) {
  const struct iommufs_model *model;
  if (library && !(*handle = dlopen(library, RTLD_NOW | RTLD_LOCAL))) {
    snprintf(error, size, "%s", dlerror());
    return NULL;
  }
  model = library ? dlsym(*handle, name) : find_built_in(name);
  if (!model)
    snprintf(error, size, "there is no model %s in %s", name, library ? library : "iommufs");
  else if (model->abi != IOMMUFS_DEVICE_ABI)
    snprintf(error, size, "%s was built for another version of device.h", name);
  else
    return model;
  if (library)
    dlclose(*handle);
  return NULL;
}

static void init_lock(pthread_mutex_t *lock) {
  pthread_mutexattr_t attr;
  pthread_mutexattr_init(&attr);
  pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init(lock, &attr);
  pthread_mutexattr_destroy(&attr);
}

int iofs_device_new(const char *library, const char *name, const char *const *options,
                    uint64_t cookie, struct iofs_refused *refused, char *error, size_t size,
                    struct iofs_device **out) {
  struct iofs_device *device = alloc_zeroed(sizeof *device);
  snprintf(error, size, "no memory");
  if (!device)
    return -ENOMEM;
  device->refs = 1;
  device->cookie = cookie;
  device->refused = refused;
  device->model = find(library, name, &device->library, error, size);
  if (device->model)
    device->instance = device->model->create(options, error, size);
  if (!device->instance) {
    if (device->model && device->library)
      dlclose(device->library);
    alloc_free(device);
    return -EINVAL;
  }
  init_lock(&device->lock);
  device_irqs_init(&device->irqs);
  *out = device;
  return 0;
}

void device_put(struct iofs_device *device) {
  if (--device->refs)
    return;
  device->model->destroy(device->instance);
  device_events_forget(device);
  device_irqs_destroy(&device->irqs);
  if (device->route)
    iofs_route_put(device->route);
  pthread_mutex_destroy(&device->lock);
  if (device->library)
    dlclose(device->library);
  alloc_free(device);
}

void iofs_device_free(struct iofs_device *device) {
  iofs_device_stop(device);
  device_enter(device);
  memset(device->bars, 0, sizeof device->bars); /* the memory goes, a stuck life may stay */
  device_leave(device);
  device_put(device);
}

/* The thread of a life lets others go first: it takes the lock again and again. */
void device_enter(struct iofs_device *device) {
  device->n_visitors++;
  pthread_mutex_lock(&device->lock);
  device->n_visitors--;
}

void device_leave(struct iofs_device *device) { pthread_mutex_unlock(&device->lock); }

void iofs_device_set_bar(struct iofs_device *device, uint32_t bar, void *memory, uint64_t size) {
  if (bar < N_BARS)
    device->bars[bar] = (struct bar){memory, size};
}

void iofs_device_set_bus_master(struct iofs_device *device, int on) { device->bus_master = !!on; }

void iofs_device_set_route(struct iofs_device *device, struct iofs_route *route) {
  route_get(route);
  device_enter(device);
  struct iofs_route *old = device->route;
  device->route = route;
  device_leave(device);
  if (old)
    iofs_route_put(old);
}

int iofs_device_start(struct iofs_device *device) {
  iofs_device_stop(device);
  device_enter(device);
  int err = life_begin(device);
  device_leave(device);
  return err;
}

void iofs_device_stop(struct iofs_device *device) {
  device_enter(device);
  life_stop(device);
  device_leave(device);
}

/* With the lock held: what a client stored to its mapping before has happened before. */
static struct life *current_life(struct iofs_device *device) {
  if (device->life)
    life_scan(device->life);
  return device->life;
}

uint64_t iofs_device_read(struct iofs_device *device, uint32_t bar, uint64_t offset,
                          uint32_t size) {
  uint64_t value = 0;
  device_enter(device);
  struct life *life = current_life(device);
  if (life && device->model->read)
    value = device->model->read(life->state, bar, offset, size);
  else if (bar < N_BARS && device->bars[bar].memory && offset + size <= device->bars[bar].size)
    memcpy(&value, device->bars[bar].memory + offset, size);
  device_leave(device);
  return value;
}

void iofs_device_write(struct iofs_device *device, uint32_t bar, uint64_t offset, uint32_t size,
                       uint64_t value) {
  device_enter(device);
  struct life *life = current_life(device);
  if (life) {
    device->model->write(life->state, bar, offset, size, value);
    life_wake(life);
  }
  device_leave(device);
}

/* ---- what a model is given -------------------------------------------------------------------- */

static void lock(struct iommufs_device *handle) {
  pthread_mutex_lock(&life_of(handle)->device->lock);
}

static void unlock(struct iommufs_device *handle) {
  pthread_mutex_unlock(&life_of(handle)->device->lock);
}

static void wake(struct iommufs_device *handle) {
  lock(handle);
  life_wake(life_of(handle));
  unlock(handle);
}

static int ended(struct iommufs_device *handle) { return life_of(handle)->ended; }

const struct iommufs_device_calls device_calls = {
    .dma_read = device_dma_read,
    .dma_write = device_dma_write,
    .store = life_store,
    .load = life_load,
    .exchange = life_exchange,
    .watch = life_watch,
    .message = device_message,
    .line = device_line,
    .messages_on = device_messages_on,
    .lock = lock,
    .unlock = unlock,
    .wake = wake,
    .ended = ended,
    .report = device_report,
    .dma_read_or_ask = device_dma_read_or_ask,
    .dma_write_or_ask = device_dma_write_or_ask,
    .page_answer = device_page_answer,
    .forget_page = device_page_forget,
};
