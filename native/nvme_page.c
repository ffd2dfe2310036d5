/*
 * Commands that wait for a page of client memory, which their controller has asked for (option pri).
 * A command that met one is carried out anew, all of it, when the page is there. Nothing else waits
 * for it: when there is no more room for such commands, the rest stays in its queue.
 */
#include <errno.h>

#include "nvme.h"

/* So that the commands of one kind do not keep those of the other from being fetched. */
#define MAX_IO (NVME_MAX_WAITING * 3 / 4)

_Static_assert(NVME_MAX_WAITING <= IOMMUFS_PAGE_REQUESTS, "each of them may have asked for one");

static unsigned n_of_kind(const struct nvme_ctrl *ctrl, int io) {
  unsigned n = 0;
  for (unsigned i = 0; i < ctrl->n_waiting; i++)
    n += !!ctrl->waiting[i].sqid == io;
  return n;
}

int nvme_can_wait(const struct nvme_ctrl *ctrl, uint16_t sqid) {
  return !ctrl->n_waiting ||
         n_of_kind(ctrl, !!sqid) < (sqid ? MAX_IO : NVME_MAX_WAITING - MAX_IO);
}

void nvme_wait_for_page(struct nvme_ctrl *ctrl, uint16_t sqid, const struct nvme_cmd *cmd,
                        struct nvme_injection *injection) {
  ctrl->waiting[ctrl->n_waiting++] = (struct nvme_waiting){*cmd, sqid, ctrl->request, injection};
}

static void take_out(struct nvme_ctrl *ctrl, unsigned i) {
  for (ctrl->n_waiting--; i < ctrl->n_waiting; i++)
    ctrl->waiting[i] = ctrl->waiting[i + 1];
}

int nvme_pages_poll(struct nvme_ctrl *ctrl) {
  int n = 0;
  for (unsigned i = 0; i < ctrl->n_waiting && ctrl->ready;) {
    const struct nvme_waiting waiting = ctrl->waiting[i];
    int answer = nvme_can_complete(ctrl, waiting.sqid)
                     ? iommufs_page_answer(ctrl->device, waiting.request)
                     : -EINPROGRESS;
    if (answer == -EINPROGRESS) {
      i++;
      continue;
    }
    take_out(ctrl, i);
    nvme_resume(ctrl, waiting.sqid, &waiting.cmd, waiting.injection, answer);
    n++;
  }
  return n;
}

/* Of a queue, and with that id unless it is negative. */
static int abort_some(struct nvme_ctrl *ctrl, uint16_t sqid, int cid, uint16_t status) {
  int n = 0;
  for (unsigned i = 0; i < ctrl->n_waiting;) {
    const struct nvme_waiting waiting = ctrl->waiting[i];
    if (waiting.sqid != sqid || (cid >= 0 && waiting.cmd.cid != cid) ||
        !nvme_can_complete(ctrl, sqid)) {
      i++;
      continue;
    }
    iommufs_forget_page(ctrl->device, waiting.request);
    take_out(ctrl, i);
    nvme_complete(ctrl, sqid, waiting.cmd.cid, status, 0);
    n++;
  }
  return n;
}

int nvme_abort_waiting(struct nvme_ctrl *ctrl, uint16_t sqid, uint16_t cid) {
  return abort_some(ctrl, sqid, cid, NVME_ABORTED);
}

void nvme_drop_waiting(struct nvme_ctrl *ctrl, uint16_t sqid) {
  abort_some(ctrl, sqid, -1, NVME_ABORTED_SQ_DELETED);
  for (unsigned i = ctrl->n_waiting; i--;) { /* for which there is no room */
    if (ctrl->waiting[i].sqid != sqid)
      continue;
    iommufs_forget_page(ctrl->device, ctrl->waiting[i].request);
    take_out(ctrl, i);
  }
}

void nvme_forget_waiting(struct nvme_ctrl *ctrl) {
  for (unsigned i = 0; i < ctrl->n_waiting; i++)
    iommufs_forget_page(ctrl->device, ctrl->waiting[i].request);
  ctrl->n_waiting = 0;
}
