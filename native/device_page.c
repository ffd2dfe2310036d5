/*
 * Pages that a life has asked its client for (device.h). A request goes out as an event; what came
 * of it is kept here until the model has looked, or the life is over.
 */
#include <errno.h>

#include "device_host.h"

/* The place of a request, or a free one for 0; NULL: there is none. */
static struct page_request *find(struct life *life, uint32_t request) {
  for (unsigned i = 0; i < IOMMUFS_PAGE_REQUESTS; i++)
    if (life->pages[i].request == request)
      return &life->pages[i];
  return NULL;
}

int device_page_ask(struct life *life, const struct iofs_dma_fault *fault, size_t length,
                    uint32_t *request) {
  struct iofs_device *device = life->device;
  struct page_request *page;
  int err;
  pthread_mutex_lock(&device->lock);
  if (life->ended)
    err = -ECANCELED;
  else if (!(page = find(life, 0)))
    err = -EAGAIN;
  else {
    while (!++device->last_request || find(life, device->last_request))
      ;
    *request = device->last_request;
    err = device_events_ask(device, &(struct page_event){fault->iova, *request, fault->write});
    if (!err) {
      *page = (struct page_request){*request, -EINPROGRESS, *fault, length};
      err = -EINPROGRESS;
    }
  }
  pthread_mutex_unlock(&device->lock);
  return err;
}

int device_page_answer(struct iommufs_device *handle, uint32_t request) {
  struct life *life = life_of(handle);
  struct iofs_device *device = life->device;
  int answer = -ECANCELED;
  pthread_mutex_lock(&device->lock);
  struct page_request *page = find(life, request);
  if (!life->ended && request && page) {
    answer = page->answer;
    if (answer == -EFAULT)
      iofs_refused_report(device->refused, &page->fault, page->length);
    if (answer != -EINPROGRESS)
      page->request = 0;
  }
  pthread_mutex_unlock(&device->lock);
  return answer;
}

void device_page_forget(struct iommufs_device *handle, uint32_t request) {
  struct life *life = life_of(handle);
  pthread_mutex_lock(&life->device->lock);
  struct page_request *page = find(life, request);
  if (page)
    page->request = 0;
  pthread_mutex_unlock(&life->device->lock);
}

void iofs_device_set_page_requests(struct iofs_device *device, int on) { device->asks = !!on; }

void iofs_device_answer_page(struct iofs_device *device, uint32_t request, int comes) {
  device_enter(device);
  struct page_request *page = device->life && request ? find(device->life, request) : NULL;
  if (page) {
    page->answer = comes ? 0 : -EFAULT;
    life_wake(device->life);
  }
  device_leave(device);
}
