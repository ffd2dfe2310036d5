/*
 * NVMe commands through doorbells in a mapping, each beside its floor: the same bytes moved by a
 * process that does nothing else, from a buffer as large as the namespace, in the same order.
 *
 *   iommufs run --device nvme,… -- nvme ADDRESS
 */
#define _GNU_SOURCE
#include "../examples/nvme_driver.h"
#include "bench.h"

#include <sys/uio.h>
#include <sys/wait.h>

#define DISK (64u << 20)
#define DEPTH 64
#define QUEUE_DEPTH 32 /* commands under way */
#define LARGEST (128u << 10)
#define ROUNDS 7

struct load {
  const char *name;
  uint32_t size;
  int random;
  uint64_t n; /* of a round */
};

static const struct load loads[] = {
    {"random reads of 4 KiB, QD 32", 4096, 1, 40000},
    {"sequential reads of 128 KiB, QD 32", LARGEST, 0, 3000},
    {"sequential writes of 128 KiB, QD 32", LARGEST, 0, 3000},
};

struct disk {
  struct nvme nvme;
  struct nvme_queue queue;
  unsigned char *slots, *lists;
  int shared;
};

static uint64_t offset_of(const struct load *load, uint64_t i, uint64_t *state) {
  return (load->random ? random_u64(state) : i) % (DISK / load->size) * load->size;
}

/* ---- ours ------------------------------------------------------------------------------------- */

static void submit(struct disk *disk, const struct load *load, unsigned slot, uint64_t offset,
                   int writing) {
  unsigned char *data = disk->slots + slot * LARGEST;
  uint64_t *list = (uint64_t *)(disk->lists + slot * NVME_PAGE);
  struct nvme_cmd cmd = {.opcode = writing ? 1 : 2,
                         .cid = (uint16_t)slot,
                         .nsid = 1,
                         .prp1 = nvme_iova(&disk->nvme, data),
                         .cdw10 = (uint32_t)(offset >> 9),
                         .cdw12 = (load->size >> 9) - 1};
  for (uint32_t at = NVME_PAGE; at < load->size; at += NVME_PAGE)
    list[at / NVME_PAGE - 1] = cmd.prp1 + at;
  if (load->size > NVME_PAGE)
    cmd.prp2 = nvme_iova(&disk->nvme, list);
  nvme_put(&disk->queue, &cmd);
}

static void run(struct disk *disk, const struct load *load, int writing, struct series *series) {
  uint64_t state = 1, sent = 0, done = 0, start = now_ns();
  for (; sent < QUEUE_DEPTH; sent++)
    submit(disk, load, (unsigned)sent, offset_of(load, sent, &state), writing);
  nvme_ring(&disk->queue);
  while (done < load->n) {
    struct nvme_cqe cqe;
    uint64_t before = done, sent_before = sent;
    for (; nvme_next(&disk->queue, &cqe); done++) {
      MUST(cqe.status >> 1 == 0);
      if (sent < load->n)
        submit(disk, load, cqe.cid, offset_of(load, sent++, &state), writing);
    }
    if (done != before)
      *disk->queue.cq_doorbell = disk->queue.head;
    if (sent != sent_before)
      nvme_ring(&disk->queue);
  }
  series_add(series, start, load->n);
}

static void open_disk(struct disk *disk, const char *address, int shared) {
  memset(disk, 0, sizeof *disk);
  disk->shared = shared;
  nvme_start(&disk->nvme, address, 16u << 20, shared);
  nvme_create_queue(&disk->nvme, &disk->queue, 1, DEPTH);
  disk->lists = nvme_take(&disk->nvme, QUEUE_DEPTH * NVME_PAGE);
  disk->slots = nvme_take(&disk->nvme, QUEUE_DEPTH * LARGEST);
  struct load fill = {"fill", LARGEST, 0, DISK / LARGEST};
  struct series unused = {0};
  run(disk, &fill, 1, &unused); /* a page that was never written is another matter */
}

static void close_disk(struct disk *disk) {
  close(disk->nvme.fd);
  close(disk->nvme.iommufd);
  munmap((void *)disk->nvme.bar, disk->nvme.bar_size);
  munmap(disk->nvme.arena, disk->nvme.arena_size);
}

/* ---- the floor: a process of its own, as ours is ------------------------------------------------ */

static void move(const struct disk *disk, pid_t client, unsigned char *memory, unsigned slot,
                 uint32_t size, int writing) {
  unsigned char *data = disk->slots + slot * LARGEST;
  struct iovec here = {memory, size}, there = {data, size};
  if (disk->shared)
    memcpy(writing ? memory : data, writing ? data : memory, size);
  else if (writing)
    MUST(process_vm_readv(client, &here, 1, &there, 1, 0) == (ssize_t)size);
  else
    MUST(process_vm_writev(client, &here, 1, &there, 1, 0) == (ssize_t)size);
}

static void run_floor(const struct disk *disk, const struct load *load, int writing,
                      struct series *series) {
  static unsigned char *memory;
  double ns;
  int fds[2];
  if (!memory) {
    memory = mmap(NULL, DISK, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(memory != MAP_FAILED);
    memset(memory, 1, DISK);
  }
  MUST(!pipe(fds));
  pid_t client = getpid(), child = fork();
  MUST(child >= 0);
  if (!child) {
    uint64_t state = 1, sum = 0;
    for (uint64_t at = 0; at < DISK; at += NVME_PAGE) /* so that the pages are this process's */
      sum += memory[at];
    uint64_t start = now_ns();
    for (uint64_t i = 0; i < load->n; i++)
      move(disk, client, memory + offset_of(load, i, &state), i % QUEUE_DEPTH, load->size, writing);
    ns = (double)(now_ns() - start) / (double)load->n;
    MUST(sum != UINT64_MAX && write(fds[1], &ns, sizeof ns) == sizeof ns);
    _exit(0);
  }
  MUST(read(fds[0], &ns, sizeof ns) == sizeof ns);
  waitpid(child, NULL, 0);
  close(fds[0]);
  close(fds[1]);
  MUST(series->n < MAX_ROUNDS);
  series->ns[series->n++] = ns;
}

int main(int argc, char **argv) {
  const char *address = argc > 1 ? argv[1] : "0000:00:01.0";
  for (int shared = 1; shared >= 0; shared--)
    for (unsigned i = 0; i < sizeof loads / sizeof *loads; i++) {
      struct series ours = {0}, floor = {0};
      struct disk disk;
      char figure[96];
      int writing = i == 2;
      open_disk(&disk, address, shared);
      for (int round = 0; round < ROUNDS; round++) {
        run(&disk, &loads[i], writing, &ours);
        run_floor(&disk, &loads[i], writing, &floor);
      }
      close_disk(&disk);
      snprintf(figure, sizeof figure, "nvme: %s, %s memory", loads[i].name,
               shared ? "shared" : "private");
      report(figure, &ours,
             shared ? "memcpy()"
                    : writing ? "process_vm_readv()" : "process_vm_writev()",
             &floor, "\"bytes\": %u", loads[i].size);
    }
  return 0;
}
