/*
 * The NVMe controller with a client that does anything: commands, lists, registers and doorbells at
 * random, under sanitizers. What it does right is tested from outside, in tests/devices.
 */
#include <errno.h>
#include <string.h>

#include "nvme.h"
#include "test.h"

#define MEMORY (256u << 10)
#define BAR 0x4000u

/* ---- a machine: client memory from 0 on, a BAR, nobody who listens ------------------------------- */

static unsigned char memory[MEMORY], bar[BAR] __attribute__((aligned(8)));
static uint64_t seed, n_messages, n_refused, n_bytes;

static uint64_t below(uint64_t n) { return test_random(&seed) % n; }

static int dma(uint64_t iova, size_t length) {
  n_refused += iova > MEMORY || length > MEMORY - iova;
  n_bytes += length;
  return iova > MEMORY || length > MEMORY - iova ? -EFAULT : 0;
}

static int dma_read(struct iommufs_device *device, uint64_t iova, void *buf, size_t length) {
  (void)device;
  if (dma(iova, length))
    return -EFAULT;
  memcpy(buf, memory + iova, length);
  return 0;
}

static int dma_write(struct iommufs_device *device, uint64_t iova, const void *buf,
                     size_t length) {
  (void)device;
  if (dma(iova, length))
    return -EFAULT;
  memcpy(memory + iova, buf, length);
  return 0;
}

/* A device with PRI, whose client answers one question in three at once. */
static uint32_t n_asked;

static int read_or_ask(struct iommufs_device *device, uint64_t iova, void *buf, size_t length,
                       uint32_t *request) {
  if (!dma_read(device, iova, buf, length))
    return 0;
  *request = ++n_asked;
  return -EINPROGRESS;
}

static int write_or_ask(struct iommufs_device *device, uint64_t iova, const void *buf,
                        size_t length, uint32_t *request) {
  if (!dma_write(device, iova, buf, length))
    return 0;
  *request = ++n_asked;
  return -EINPROGRESS;
}

static int page_answer(struct iommufs_device *device, uint32_t request) {
  (void)device;
  CHECK(request && request <= n_asked);
  return below(3) ? -EINPROGRESS : below(8) ? -EFAULT : 0;
}

static void forget_page(struct iommufs_device *device, uint32_t request) {
  (void)device;
  CHECK(request && request <= n_asked);
}

static void store(struct iommufs_device *device, unsigned b, uint64_t offset, unsigned size,
                  uint64_t value) {
  (void)device;
  CHECK(!b && offset % size == 0 && offset + size <= 0x2000);
  memcpy(bar + offset, &value, size);
}

static uint64_t load(struct iommufs_device *device, unsigned b, uint64_t offset, unsigned size) {
  uint64_t value = 0;
  (void)device;
  CHECK(!b && offset + size <= BAR);
  memcpy(&value, bar + offset, size);
  return value;
}

static int watch(struct iommufs_device *device, unsigned b, uint64_t offset, unsigned size) {
  (void)device, (void)b, (void)offset, (void)size;
  return 0;
}

static void message(struct iommufs_device *device, unsigned vector) {
  (void)device;
  CHECK(vector < 65);
  n_messages++;
}

static void line(struct iommufs_device *device, int level) { (void)device, (void)level; }
static int messages_on(struct iommufs_device *device) { return (void)device, 1; }
static void nothing(struct iommufs_device *device) { (void)device; }
static int ended(struct iommufs_device *device) { return (void)device, 0; }
static void say(struct iommufs_device *device, const char *text) { (void)device, (void)text; }

static const struct iommufs_device_calls calls = {
    .dma_read = dma_read,
    .dma_write = dma_write,
    .store = store,
    .load = load,
    .watch = watch,
    .message = message,
    .line = line,
    .messages_on = messages_on,
    .lock = nothing,
    .unlock = nothing,
    .wake = nothing,
    .ended = ended,
    .report = say,
    .dma_read_or_ask = read_or_ask,
    .dma_write_or_ask = write_or_ask,
    .page_answer = page_answer,
    .forget_page = forget_page,
};

static struct iommufs_device device = {&calls};
static void *disk, *ctrl;

static void begin(void) {
  static const char *const options[] = {"serial=test",
                                        "queues=8",
                                        "vectors=65",
                                        "mdts=4",
                                        "namespace=memory,id=1,size=65536,lba=512,readonly=0",
                                        "namespace=null,id=2,size=1048576,lba=4096,readonly=0",
                                        "namespace=memory,id=5,size=65536,lba=512,readonly=1",
                                        "inject=io,opcode=12,every=5,latency_us=1,drop=0",
                                        "inject=io,opcode=8,every=7,drop=1",
                                        NULL};
  char error[64];
  disk = nvme_model.create(options, error, sizeof error);
  CHECK(disk);
  ctrl = nvme_model.start(disk, &device);
  CHECK(ctrl);
}

static void finish(void) {
  nvme_model.end(ctrl);
  nvme_model.destroy(disk);
}

static void set(uint64_t offset, unsigned size, uint64_t value) {
  nvme_model.write(ctrl, 0, offset, size, value);
}

static void poll_some(void) {
  for (int i = 0; i < 50 && nvme_model.poll(ctrl); i++)
    ;
}

static void enable(void) {
  set(NVME_CC, 4, 0);
  poll_some();
  set(NVME_AQA, 4, 15 << 16 | 15);
  set(NVME_ASQ, 8, 0x1000);
  set(NVME_ACQ, 8, 0x2000);
  set(NVME_CC, 4, 4 << 20 | 6 << 16 | 1);
  poll_some();
}

/* ---- what it does ------------------------------------------------------------------------------- */

/* A number that is likely to mean something. */
static uint64_t number(void) {
  switch (below(6)) {
  case 0:
    return below(8);
  case 1:
    return 1ull << below(64);
  case 2:
    return below(MEMORY) & ~4095ull;
  case 3:
    return below(MEMORY);
  case 4:
    return (1ull << below(64)) - 1;
  default:
    return test_random(&seed);
  }
}

static void fill_command(struct nvme_cmd *cmd) {
  static const uint8_t opcodes[] = {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x18, 0x80};
  uint64_t *words = (uint64_t *)cmd;
  for (unsigned i = 0; i < sizeof *cmd / 8; i++)
    words[i] = below(3) ? number() : number() << 32 | (uint32_t)number();
  if (below(4)) { /* memory that is there, or nearly */
    cmd->prp1 = below(MEMORY + MEMORY / 8) & ~3ull;
    cmd->prp2 = below(MEMORY + MEMORY / 8) & (below(2) ? ~7ull : ~4095ull);
  }
  cmd->opcode = below(20) ? opcodes[below(sizeof opcodes)] : (uint8_t)number();
  cmd->flags = below(8) ? (uint8_t)(below(2) << 6) : (uint8_t)number();
  cmd->nsid = below(4) ? (uint32_t)below(7) : (uint32_t)number();
  if (below(2)) {
    cmd->cdw10 = (uint32_t)(below(16) << 16 | below(10)); /* a queue, a log page, a feature */
    cmd->cdw11 = (uint32_t)(below(10) << 16 | 3);
    cmd->cdw12 = (uint32_t)below(64);
  } else if (below(2)) {
    cmd->cdw10 = (uint32_t)below(140); /* a block */
    cmd->cdw11 = 0;
    cmd->cdw12 = (uint32_t)below(below(2) ? 16 : 128);
    cmd->nsid = below(8) ? (uint32_t)below(2) + 1 : 5;
    cmd->flags = (uint8_t)(!below(3) << 6);
  }
}

/* Lists of PRPs and SGL descriptors, which may lead to each other. */
static void scatter(void) {
  for (int i = 0; i < 64; i++) {
    uint64_t at = below(MEMORY / 16) * 16, word[2] = {number(), number()};
    if (below(2))
      word[1] = below(4096) | below(6) << 60;
    memcpy(memory + at, word, sizeof word);
  }
  uint64_t list = below(MEMORY / 4096) * 4096;
  for (int i = 0; i < 64; i++) {
    uint64_t page = below(MEMORY / 4096 + !below(16)) * 4096;
    memcpy(memory + list + 8 * i, &page, sizeof page);
  }
}

static void submit(void) {
  unsigned queue = (unsigned)below(4), n = (unsigned)below(16);
  for (unsigned i = 0; i < 16; i++)
    fill_command((struct nvme_cmd *)(void *)(memory + 0x1000 + 0x4000 * queue + 64 * i));
  set(NVME_DOORBELLS + 8 * queue, 4, n);
  set(NVME_DOORBELLS + 8 * queue + 4, 4, below(16));
}

/* Queues 1 to 3, where submit() puts its commands. */
static void make_queues(void) {
  struct nvme_cmd *cmds = (void *)(memory + 0x1000);
  enable();
  memset(cmds, 0, 16 * sizeof *cmds);
  for (unsigned id = 1; id < 4; id++) {
    cmds[2 * id - 2] = (struct nvme_cmd){
        .opcode = 5, .prp1 = 0x2000 + 0x4000 * id, .cdw10 = 15 << 16 | id, .cdw11 = id << 16 | 3};
    cmds[2 * id - 1] = (struct nvme_cmd){.opcode = 1,
                                         .prp1 = 0x1000 + 0x4000 * id,
                                         .cdw10 = 15 << 16 | id,
                                         .cdw11 = id << 16 | 1};
  }
  set(NVME_DOORBELLS, 4, 6);
  poll_some();
}

static void anything_at_all(void) {
  begin();
  enable();
  for (int i = 0; i < 30000; i++) {
    switch (below(12)) {
    case 0:
      scatter();
      break;
    case 1:
      set(below(0x2000) & ~3ull, 4, number());
      break;
    case 2:
      if (!(load(&device, 0, NVME_CSTS, 4) & 1) || !below(20))
        enable();
      break;
    case 3:
      if (!below(8))
        make_queues();
      break;
    default:
      submit();
    }
    poll_some();
    nvme_model.read(ctrl, 0, below(BAR / 8) * 8, 8);
  }
  printf("%" PRIu64 " interrupts, %" PRIu64 " bytes, %" PRIu64 " refused\n", n_messages, n_bytes,
         n_refused);
  fflush(stdout);
  CHECK(n_messages > 100 && n_bytes > 4 << 20 && n_refused > 50);
  finish();
}

int main(int argc, char **argv) {
  seed = test_seed(argc, argv);
  RUN(anything_at_all);
  return 0;
}
