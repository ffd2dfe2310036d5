/* Where the DMA of devices goes: routes, which IOMMU groups have, and the DMA of models in C. */
#include <errno.h>
#include <pthread.h>

#include "alloc.h"
#include "device_host.h"

struct iofs_route {
  _Atomic uint32_t refs;
  pthread_mutex_t lock;
  struct iofs_domain *domain; /* NULL: nowhere */
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

static void set(struct iofs_route *route, struct iofs_domain *domain) {
  struct iofs_domain *old;
  if (domain)
    iofs_domain_get(domain);
  pthread_mutex_lock(&route->lock);
  old = route->domain;
  route->domain = domain;
  pthread_mutex_unlock(&route->lock);
  if (old)
    iofs_domain_put(old);
}

void iofs_route_set(struct iofs_route *route, struct iofs_domain *domain) { set(route, domain); }

void iofs_route_put(struct iofs_route *route) {
  if (--route->refs)
    return;
  set(route, NULL);
  pthread_mutex_destroy(&route->lock);
  alloc_free(route);
}

/* The domain of now, with a reference; NULL: there is none. */
static struct iofs_domain *domain_of(struct iofs_route *route) {
  struct iofs_domain *domain = NULL;
  if (!route)
    return NULL;
  pthread_mutex_lock(&route->lock);
  if ((domain = route->domain))
    iofs_domain_get(domain);
  pthread_mutex_unlock(&route->lock);
  return domain;
}

/* buf: to read into, or to write from. */
static int move(struct iommufs_device *handle, uint64_t iova, void *buf, size_t length, int write) {
  const struct life *life = life_of(handle);
  struct iofs_device *device = life->device;
  struct iofs_dma_fault fault = {iova, (uint32_t)write, IOFS_DMA_NO_MASTER};
  int err = -EFAULT;
  if (life->ended)
    return -ECANCELED;
  if (device->bus_master) {
    struct iofs_domain *domain = domain_of(life->route);
    fault.reason = IOFS_DMA_DETACHED;
    if (domain) {
      err = write ? iofs_dma_write(domain, iova, buf, length, &fault)
                  : iofs_dma_read(domain, iova, buf, length, &fault);
      iofs_domain_put(domain);
    }
  }
  if (!err && !life->ended)
    return 0;
  pthread_mutex_lock(&device->lock); /* while the life goes on, so does the ledger */
  if (life->ended)
    err = -ECANCELED;
  else if (err == -EFAULT)
    iofs_refused_report(device->refused, &fault, length);
  pthread_mutex_unlock(&device->lock);
  return err;
}

int device_dma_read(struct iommufs_device *handle, uint64_t iova, void *buf, size_t length) {
  return move(handle, iova, buf, length, 0);
}

int device_dma_write(struct iommufs_device *handle, uint64_t iova, const void *buf,
                     size_t length) {
  return move(handle, iova, (void *)buf, length, 1);
}
