/* Where the DMA of devices goes: routes, which IOMMU groups have, and the DMA of models in C. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>

#include "alloc.h"
#include "device_host.h"
#include "flight.h"

struct iofs_route {
  _Atomic uint32_t refs;
  pthread_mutex_t lock;
  struct iofs_domain *domain; /* NULL: nowhere */
  struct flights users[2]; /* threads that do DMA, by the phase in which they began */
  unsigned phase;              /* each change begins the other one */
};

struct iofs_route *iofs_route_new(void) {
  struct iofs_route *route = alloc_zeroed(sizeof *route);
  if (route) {
    route->refs = 1;
    pthread_mutex_init(&route->lock, NULL);
  }
  return route;
}

void route_get(struct iofs_route *route) { route->refs++; }

void iofs_route_set(struct iofs_route *route, struct iofs_domain *domain) {
  if (domain)
    iofs_domain_get(domain);
  pthread_mutex_lock(&route->lock);
  struct iofs_domain *old = route->domain;
  unsigned phase = route->phase;
  route->domain = domain;
  route->phase ^= 1;
  pthread_mutex_unlock(&route->lock);
  flights_wait(&route->users[phase]);
  if (old)
    iofs_domain_put(old);
}

void iofs_route_put(struct iofs_route *route) {
  if (--route->refs)
    return;
  if (route->domain)
    iofs_domain_put(route->domain);
  pthread_mutex_destroy(&route->lock);
  alloc_free(route);
}

/* Hold the domain of now until device_dma_rest(), so that not each DMA has to ask for it; NULL:
 * there is none. */
static struct iofs_domain *hold_domain(struct life *life) {
  struct iofs_route *route = life->route;
  if (life->dma.domain || !route)
    return life->dma.domain;
  pthread_mutex_lock(&route->lock);
  if ((life->dma.domain = route->domain)) {
    iofs_domain_get(route->domain);
    life->dma.phase = route->phase;
    life->dma.place = flight_begin(&route->users[route->phase]);
  }
  pthread_mutex_unlock(&route->lock);
  return life->dma.domain;
}

void device_dma_rest(struct life *life) {
  if (!life->dma.domain)
    return;
  iofs_domain_put(life->dma.domain);
  life->dma.domain = NULL;
  flight_end(&life->route->users[life->dma.phase], life->dma.place);
}

/* Whether the client may be asked for what was missed. */
static int can_ask(const struct iofs_device *device, const struct iofs_dma_fault *fault) {
  return device->asks && (fault->reason == IOFS_DMA_UNMAPPED || fault->reason == IOFS_DMA_PERMISSION);
}

/* buf: to read into, or to write from. request: NULL if no page is to be asked for. */
static int move(struct iommufs_device *handle, uint64_t iova, void *buf, size_t length, int write,
                uint32_t *request) {
  struct life *life = life_of(handle);
  struct iofs_device *device = life->device;
  struct iofs_dma_fault fault = {iova, (uint32_t)write, IOFS_DMA_NO_MASTER};
  int err = -EFAULT;
  if (life->ended)
    return -ECANCELED;
  if (device->bus_master) {
    struct iofs_domain *domain = hold_domain(life);
    fault.reason = IOFS_DMA_DETACHED;
    if (domain)
      err = write ? iofs_dma_write(domain, iova, buf, length, &fault)
                  : iofs_dma_read(domain, iova, buf, length, &fault);
  }
  if (!err && !life->ended)
    return 0;
  if (err == -EFAULT && request && can_ask(device, &fault))
    return device_page_ask(life, &fault, length, request);
  pthread_mutex_lock(&device->lock); /* while the life goes on, so does the ledger */
  if (life->ended)
    err = -ECANCELED;
  else if (err == -EFAULT)
    iofs_refused_report(device->refused, &fault, length);
  pthread_mutex_unlock(&device->lock);
  return err;
}

int device_dma_read(struct iommufs_device *handle, uint64_t iova, void *buf, size_t length) {
  return move(handle, iova, buf, length, 0, NULL);
}

int device_dma_write(struct iommufs_device *handle, uint64_t iova, const void *buf,
                     size_t length) {
  return move(handle, iova, (void *)buf, length, 1, NULL);
}

int device_dma_read_or_ask(struct iommufs_device *handle, uint64_t iova, void *buf, size_t length,
                           uint32_t *request) {
  return move(handle, iova, buf, length, 0, request);
}

int device_dma_write_or_ask(struct iommufs_device *handle, uint64_t iova, const void *buf,
                            size_t length, uint32_t *request) {
  return move(handle, iova, (void *)buf, length, 1, request);
}
