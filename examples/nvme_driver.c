/*
 * A small NVMe driver that loses no byte, or says so: random reads and writes of 512 B to 128 KiB on
 * several queues, in shared and in private memory, by PRPs and SGLs, of a namespace whose every
 * block is known. In between queues are deleted, the controller is reset, the function is reset,
 * and the driver is killed in the middle of it. What was acknowledged must be there afterwards; of
 * a write that was not, each word of eight bytes is the old or the new one.
 *
 * What there is was written by earlier runs or not at all: the first pass over the namespace makes
 * it known. Everything random follows from the seed.
 *
 *   cc -Iuapi -o nvme_driver examples/nvme_driver.c
 *   nvme_driver [-d ADDRESS] [-n OPERATIONS] [-s SEED]
 */
#include "nvme_driver.h"

#include <signal.h>
#include <sys/wait.h>

#define N_QUEUES 4
#define DEPTH 64
#define N_SLOTS 32 /* commands under way in each queue */
#define N_FLIGHTS (N_QUEUES * N_SLOTS)
#define LARGEST (128u << 10)
#define SLOT_SIZE (LARGEST + 2 * NVME_PAGE)
#define MAX_BLOCKS (1u << 20) /* of the namespace, as far as they are used */
#define ARENA (N_FLIGHTS * (uint64_t)SLOT_SIZE + (4u << 20))

enum { FREE, READING, WRITING };

struct flight {
  int state;
  uint32_t first, n_blocks, version; /* version: what a write writes */
};

/* What outlives a killed driver. */
struct known {
  uint64_t seed, n_left, n_reads, n_writes, n_bytes;
  uint64_t n_kills, n_controller_resets, n_function_resets, n_queue_resets, n_torn;
  uint32_t n_blocks, block_size, next_version;
  int initialised;
  struct flight flights[N_FLIGHTS];
  uint32_t versions[MAX_BLOCKS]; /* of each block */
  uint8_t busy[MAX_BLOCKS];      /* readers under way, or a writer: 255 */
};

struct driver {
  struct nvme nvme;
  struct nvme_queue queues[N_QUEUES];
  struct known *known;
  unsigned char *slots; /* a buffer and two pages for lists for each flight */
  unsigned n_flying;
  uint64_t expect_from[N_FLIGHTS]; /* where in its slot the data begins */
};

/* ---- what is random, and what blocks hold ------------------------------------------------------ */

static uint64_t mix(uint64_t z) {
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

static uint64_t draw(struct known *known) { return mix(known->seed += 0x9e3779b97f4a7c15); }

static uint64_t below(struct known *known, uint64_t n) { return draw(known) % n; }

/* A block's words: the first is random, the others go up from it. */
static uint64_t first_word(uint32_t block, uint32_t version) {
  return mix((uint64_t)block << 32 | version) | 1;
}

static void fill(void *memory, uint32_t block, uint32_t version, uint32_t size) {
  uint64_t *words = memory, word = first_word(block, version);
  for (uint32_t i = 0; i < size / 8; i++)
    words[i] = word + i * 0x9e3779b97f4a7c15;
}

static int holds(const void *memory, uint32_t block, uint32_t version, uint32_t size) {
  const uint64_t *words = memory;
  uint64_t word = first_word(block, version), wrong = 0;
  for (uint32_t i = 0; i < size / 8; i++)
    wrong |= words[i] ^ (word + i * 0x9e3779b97f4a7c15);
  return !wrong;
}

static int is_torn(const void *memory, uint32_t block, uint32_t old, uint32_t new, uint32_t size) {
  const uint64_t *words = memory;
  for (uint32_t i = 0; i < size / 8; i++)
    if (words[i] != first_word(block, old) + i * 0x9e3779b97f4a7c15 &&
        words[i] != first_word(block, new) + i * 0x9e3779b97f4a7c15)
      return 0;
  return 1;
}

/* ---- commands --------------------------------------------------------------------------------- */

static unsigned char *slot_of(const struct driver *driver, unsigned i) {
  return driver->slots + (uint64_t)i * SLOT_SIZE;
}

/* PRPs of memory that lies side by side, as a driver makes them: page by page. */
static void set_prps(const struct driver *driver, struct nvme_cmd *cmd, unsigned slot,
                     const unsigned char *data, uint32_t length) {
  uint64_t iova = nvme_iova(&driver->nvme, data), page = iova / NVME_PAGE * NVME_PAGE;
  uint64_t *list = (uint64_t *)(slot_of(driver, slot) + LARGEST + NVME_PAGE);
  uint64_t last = (iova + length - 1) / NVME_PAGE * NVME_PAGE;
  unsigned n = 0;
  cmd->prp1 = iova;
  for (uint64_t at = page + NVME_PAGE; at <= last; at += NVME_PAGE)
    list[n++] = at;
  if (n == 1)
    cmd->prp2 = list[0];
  else if (n)
    cmd->prp2 = nvme_iova(&driver->nvme, list);
}

/* An SGL of a few pieces, in one segment. */
static void set_sgl(const struct driver *driver, struct nvme_cmd *cmd, unsigned slot,
                    const unsigned char *data, uint32_t length) {
  struct {
    uint64_t address;
    uint32_t length;
    uint8_t reserved[3], type;
  } *list = (void *)(slot_of(driver, slot) + LARGEST + NVME_PAGE);
  unsigned n = 0;
  for (uint32_t done = 0; done < length; n++) {
    uint32_t part = n < 7 && length - done > 64 ? (uint32_t)below(driver->known, length - done) + 1
                                                : length - done;
    list[n].address = nvme_iova(&driver->nvme, data + done);
    list[n].length = part;
    list[n].type = 0;
    done += part;
  }
  cmd->flags = 1 << 6;
  cmd->prp1 = nvme_iova(&driver->nvme, list);
  cmd->prp2 = n * sizeof *list | 3ull << 60; /* the last segment */
}

static void send(struct driver *driver, unsigned i, unsigned opcode) {
  const struct flight *flight = &driver->known->flights[i];
  uint32_t length = flight->n_blocks * driver->known->block_size;
  unsigned char *data = slot_of(driver, i) + driver->expect_from[i];
  struct nvme_cmd cmd = {.opcode = (uint8_t)opcode,
                         .cid = (uint16_t)i,
                         .nsid = 1,
                         .cdw10 = flight->first,
                         .cdw12 = flight->n_blocks - 1};
  if (below(driver->known, 4))
    set_prps(driver, &cmd, i, data, length);
  else
    set_sgl(driver, &cmd, i, data, length);
  nvme_put(&driver->queues[i / N_SLOTS], &cmd);
  driver->n_flying++;
}

static void mark(struct known *known, const struct flight *flight, int by) {
  for (uint32_t i = 0; i < flight->n_blocks; i++)
    known->busy[flight->first + i] = (uint8_t)(known->busy[flight->first + i] + by);
}

/* Whether nothing under way touches the blocks, or, for a read, no write. */
static int is_free(const struct known *known, uint32_t first, uint32_t n, int writing) {
  for (uint32_t i = 0; i < n; i++)
    if (known->busy[first + i] == 255 || (writing && known->busy[first + i]))
      return 0;
  return 1;
}

/* Small ones and large ones alike. */
static uint32_t draw_size(struct known *known) {
  uint32_t most = LARGEST / known->block_size;
  uint32_t limit = 1u << below(known, (uint64_t)__builtin_ctz(most) + 1);
  return (uint32_t)below(known, limit) + 1;
}

static void begin(struct driver *driver, unsigned i) {
  struct known *known = driver->known;
  struct flight *flight = &known->flights[i];
  uint32_t n = draw_size(known), first = (uint32_t)below(known, known->n_blocks - n + 1);
  int writing = (int)below(known, 2);
  if (!is_free(known, first, n, writing))
    return;
  driver->expect_from[i] = below(known, NVME_PAGE / 4) * 4;
  unsigned char *data = slot_of(driver, i) + driver->expect_from[i];
  *flight = (struct flight){.first = first, .n_blocks = n, .version = known->next_version};
  if (writing) {
    known->next_version++;
    for (uint32_t b = 0; b < n; b++)
      fill(data + b * known->block_size, first + b, flight->version, known->block_size);
  } else
    memset(data, 0x55, (size_t)n * known->block_size);
  mark(known, flight, writing ? 255 : 1);
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  flight->state = writing ? WRITING : READING;
  send(driver, i, writing ? 1 : 2);
}

static void check_read(const struct driver *driver, unsigned i) {
  const struct known *known = driver->known;
  const struct flight *flight = &known->flights[i];
  const unsigned char *data = slot_of(driver, i) + driver->expect_from[i];
  for (uint32_t b = 0; b < flight->n_blocks; b++)
    if (!holds(data + b * known->block_size, flight->first + b, known->versions[flight->first + b],
               known->block_size))
      die("block %u does not hold version %u (read of %u from %u)", flight->first + b,
          known->versions[flight->first + b], flight->n_blocks, flight->first);
}

static void finish(struct driver *driver, const struct nvme_cqe *cqe, unsigned queue) {
  struct known *known = driver->known;
  unsigned i = cqe->cid;
  if (i / N_SLOTS != queue || known->flights[i].state == FREE || cqe->sqid != queue + 1)
    die("a completion that nobody waits for: queue %u, command %u", cqe->sqid, i);
  struct flight *flight = &known->flights[i];
  if (cqe->status >> 1)
    die("status %#x: blocks %u from %u", cqe->status >> 1, flight->n_blocks, flight->first);
  int writing = flight->state == WRITING;
  if (writing)
    for (uint32_t b = 0; b < flight->n_blocks; b++)
      known->versions[flight->first + b] = flight->version;
  else
    check_read(driver, i);
  (*(writing ? &known->n_writes : &known->n_reads))++;
  known->n_bytes += (uint64_t)flight->n_blocks * known->block_size;
  mark(known, flight, writing ? -255 : -1);
  flight->state = FREE;
  driver->n_flying--;
  if (known->n_left)
    known->n_left--;
}

static int collect(struct driver *driver, unsigned queue) {
  struct nvme_queue *at = &driver->queues[queue];
  struct nvme_cqe cqe;
  int n = 0;
  for (; nvme_next(at, &cqe); n++)
    finish(driver, &cqe, queue);
  if (n)
    *at->cq_doorbell = at->head;
  return n;
}

static void drain(struct driver *driver) {
  uint64_t start = nvme_now();
  while (driver->n_flying)
    for (unsigned q = 0; q < N_QUEUES; q++)
      if (collect(driver, q))
        start = nvme_now();
      else if (nvme_now() - start > NVME_TIMEOUT_NS)
        die("%u commands are not answered", driver->n_flying);
}

/* ---- after something was cut off --------------------------------------------------------------- */

static void move_now(struct driver *driver, unsigned i, unsigned opcode) {
  struct flight *flight = &driver->known->flights[i];
  struct nvme_queue *queue = &driver->queues[i / N_SLOTS];
  struct nvme_cqe cqe;
  uint64_t start = nvme_now();
  driver->expect_from[i] = 0;
  send(driver, i, opcode);
  driver->n_flying--;
  nvme_ring(queue);
  while (!nvme_next(queue, &cqe))
    if (nvme_now() - start > NVME_TIMEOUT_NS)
      die("a command is not answered");
  *queue->cq_doorbell = queue->head;
  if (cqe.status >> 1)
    die("status %#x: blocks %u from %u", cqe.status >> 1, flight->n_blocks, flight->first);
}

/* A write was not acknowledged: each block is the old or the new one, or torn; then write it anew. */
static void settle_write(struct driver *driver, unsigned i) {
  struct known *known = driver->known;
  const struct flight *flight = &known->flights[i];
  unsigned char *data = slot_of(driver, i);
  int torn = 0;
  move_now(driver, i, 2);
  for (uint32_t b = 0; b < flight->n_blocks; b++) {
    uint32_t block = flight->first + b, old = known->versions[block];
    unsigned char *at = data + b * known->block_size;
    if (holds(at, block, flight->version, known->block_size))
      continue;
    if (!is_torn(at, block, old, flight->version, known->block_size))
      die("block %u holds neither version %u nor %u", block, old, flight->version);
    torn |= !holds(at, block, old, known->block_size);
    fill(at, block, flight->version, known->block_size);
  }
  known->n_torn += (uint64_t)torn;
  move_now(driver, i, 1);
  for (uint32_t b = 0; b < flight->n_blocks; b++)
    known->versions[flight->first + b] = flight->version;
}

static void settle(struct driver *driver) {
  struct known *known = driver->known;
  driver->n_flying = 0;
  for (unsigned i = 0; i < N_FLIGHTS; i++)
    if (known->flights[i].state == WRITING)
      settle_write(driver, i);
  for (unsigned i = 0; i < N_FLIGHTS; i++)
    known->flights[i].state = FREE;
  memset(known->busy, 0, sizeof known->busy);
}

static void make_queues(struct driver *driver) {
  for (unsigned q = 0; q < N_QUEUES; q++)
    nvme_create_queue(&driver->nvme, &driver->queues[q], q + 1, DEPTH);
}

static void reset_function(struct driver *driver) {
  if (ioctl(driver->nvme.fd, VFIO_DEVICE_RESET))
    die("RESET: %s", strerror(errno));
}

/* Something that goes wrong in the life of a driver. */
static void disturb(struct driver *driver) {
  struct known *known = driver->known;
  switch (below(known, 4)) {
  case 0:
  case 1: {
    unsigned q = (unsigned)below(known, N_QUEUES);
    drain(driver);
    nvme_delete_queue(&driver->nvme, q + 1);
    nvme_create_queue(&driver->nvme, &driver->queues[q], q + 1, DEPTH);
    known->n_queue_resets++;
    return;
  }
  case 2:
    known->n_controller_resets++;
    break;
  default:
    reset_function(driver);
    known->n_function_resets++;
  }
  nvme_enable(&driver->nvme);
  make_queues(driver);
  settle(driver);
}

/* ---- one driver ------------------------------------------------------------------------------- */

static void learn_namespace(struct driver *driver) {
  struct known *known = driver->known;
  unsigned char *page = nvme_take(&driver->nvme, NVME_PAGE);
  uint64_t n_blocks;
  nvme_identify(&driver->nvme, 1, 0, page);
  printf("controller: %.20s %.40s %.8s\n", page + 4, page + 24, page + 64);
  nvme_identify(&driver->nvme, 0, 1, page);
  memcpy(&n_blocks, page, sizeof n_blocks);
  known->block_size = 1u << page[128 + 4 * (page[26] & 15) + 2];
  known->n_blocks = n_blocks < MAX_BLOCKS ? (uint32_t)n_blocks : MAX_BLOCKS;
  if (known->n_blocks < LARGEST / known->block_size)
    die("the namespace is too small: %u blocks", known->n_blocks);
  printf("namespace: %llu blocks of %u bytes, %u of them in use here\n",
         (unsigned long long)n_blocks, known->block_size, known->n_blocks);
  fflush(stdout);
}

/* Write every block once. */
static void initialise(struct driver *driver) {
  struct known *known = driver->known;
  uint32_t most = LARGEST / known->block_size;
  struct flight *flight = &known->flights[0];
  for (uint32_t first = 0; first < known->n_blocks; first += flight->n_blocks) {
    uint32_t left = known->n_blocks - first;
    *flight = (struct flight){.first = first, .n_blocks = left < most ? left : most};
    for (uint32_t b = 0; b < flight->n_blocks; b++)
      fill(slot_of(driver, 0) + b * known->block_size, first + b, 0, known->block_size);
    move_now(driver, 0, 1);
  }
  known->next_version = 1;
  known->initialised = 1;
}

static void work(struct driver *driver) {
  struct known *known = driver->known;
  uint64_t start = nvme_now();
  while (known->n_left) {
    for (unsigned q = 0; q < N_QUEUES; q++) {
      struct nvme_queue *queue = &driver->queues[q];
      uint32_t tail = queue->tail;
      for (unsigned i = q * N_SLOTS; i < (q + 1) * N_SLOTS; i++)
        if (known->flights[i].state == FREE && known->n_left > driver->n_flying)
          begin(driver, i);
      if (queue->tail != tail)
        nvme_ring(queue);
      if (collect(driver, q))
        start = nvme_now();
      else if (nvme_now() - start > NVME_TIMEOUT_NS)
        die("%u commands are not answered, CSTS is %#x", driver->n_flying,
            nvme_read32(&driver->nvme, 0x1c));
    }
    if (!below(known, 2000))
      disturb(driver);
  }
  drain(driver);
}

static void run(struct known *known, const char *address) {
  static struct driver driver;
  driver.known = known;
  nvme_start(&driver.nvme, address, ARENA, (int)below(known, 2));
  if (!known->n_blocks)
    learn_namespace(&driver);
  make_queues(&driver);
  driver.slots = nvme_take(&driver.nvme, N_FLIGHTS * (uint64_t)SLOT_SIZE);
  if (!known->initialised)
    initialise(&driver);
  settle(&driver);
  work(&driver);
}

/* ---- many drivers, one after the other ---------------------------------------------------------- */

/* A driver that is killed after a while, unless it is done before. Whether it was. */
static int run_one(struct known *known, const char *address) {
  useconds_t patience = (useconds_t)(200000 + below(known, 2000000));
  fflush(stdout);
  pid_t child = fork();
  int status, done = 0;
  if (child < 0)
    die("fork: %s", strerror(errno));
  if (!child) {
    run(known, address);
    fflush(stdout);
    _exit(0);
  }
  uint64_t end = nvme_now() + patience * 1000ull;
  while (!(done = waitpid(child, &status, WNOHANG)) && nvme_now() < end)
    usleep(1000);
  if (!done) {
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
  }
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
    known->n_kills++;
    return 0;
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status))
    die("the driver failed");
  return 1;
}

int main(int argc, char **argv) {
  const char *address = "0000:01:00.0";
  uint64_t n = 20000, seed = (uint64_t)time(NULL);
  for (int option; (option = getopt(argc, argv, "d:n:s:")) != -1;)
    if (option == 'd')
      address = optarg;
    else if (option == 'n')
      n = strtoull(optarg, NULL, 0);
    else if (option == 's')
      seed = strtoull(optarg, NULL, 0);
    else
      return 2;
  struct known *known = mmap(NULL, sizeof *known, PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (known == MAP_FAILED)
    die("%s", strerror(errno));
  printf("seed %llu\n", (unsigned long long)seed);
  known->seed = seed;
  known->n_left = n;
  uint64_t start = nvme_now(), before = n;
  for (int idle = 0; !run_one(known, address); before = known->n_left)
    if ((idle = known->n_left == before ? idle + 1 : 0) == 30)
      die("thirty drivers in a row got nowhere");
  printf("%llu reads, %llu writes, %.1f GiB in %.1f s; %llu queue resets, %llu controller resets, "
         "%llu function resets, %llu kills, %llu writes found torn\nno acknowledged byte was lost\n",
         (unsigned long long)known->n_reads, (unsigned long long)known->n_writes,
         (double)known->n_bytes / (1 << 30), (double)(nvme_now() - start) / 1e9,
         (unsigned long long)known->n_queue_resets, (unsigned long long)known->n_controller_resets,
         (unsigned long long)known->n_function_resets, (unsigned long long)known->n_kills,
         (unsigned long long)known->n_torn);
  return 0;
}
