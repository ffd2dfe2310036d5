/*
 * What an 82576 computes: checksums, types, the hash of RSS, segments; wires between threads; and the
 * whole with a client that does anything. What it does right is tested from outside, in tests/devices.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "igb.h"
#include "iommufs.h"
#include "test.h"

static uint64_t seed;

static uint64_t below(uint64_t n) { return test_random(&seed) % n; }

static void fill(uint8_t *data, size_t length) {
  for (size_t i = 0; i < length; i++)
    data[i] = (uint8_t)test_random(&seed);
}

/* ---- pure parts -------------------------------------------------------------------------------- */

/* Word by word, as RFC 1071 says it. */
static uint32_t plain_sum(const uint8_t *data, size_t length) {
  uint64_t sum = 0;
  for (size_t i = 0; i < length; i++)
    sum += (uint64_t)data[i] << (i % 2 ? 0 : 8);
  while (sum >> 16)
    sum = (sum & 0xffff) + (sum >> 16);
  return (uint32_t)sum;
}

static void sums_are_those_of_words(void) {
  uint8_t data[2048];
  for (int i = 0; i < 20000; i++) {
    size_t start = below(4), length = below(i % 2 ? 8 : 2000);
    fill(data, sizeof data);
    CHECK_EQ(igb_sum(data + start, length), plain_sum(data + start, length));
  }
  memset(data, 0xff, sizeof data);
  CHECK_EQ(igb_sum(data, sizeof data), 0xffff);
  CHECK_EQ(igb_sum(data, 0), 0);
}

static void the_fcs_is_that_of_ieee_802_3(void) {
  CHECK_EQ(igb_crc32((const uint8_t *)"123456789", 9), 0xcbf43926);
  CHECK_EQ(igb_crc32(NULL, 0), 0);
}

static const uint8_t key[40] = {
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3,
    0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3,
    0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa};

/* Microsoft's vectors for RSS: 66.9.149.187:2794 to 161.142.100.80:1766. */
static void hashes_are_those_that_were_published(void) {
  const uint8_t input[] = {66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6};
  uint8_t ones[36];
  CHECK_EQ(igb_toeplitz(key, input, 8), 0x323e8fc2);
  CHECK_EQ(igb_toeplitz(key, input, 12), 0x51ccc178);
  memset(ones, 0, sizeof ones);
  CHECK_EQ(igb_toeplitz(key, ones, sizeof ones), 0);
  ones[35] = 1; /* the last bit of the longest input takes the last 32 bits but 0 of the key */
  CHECK_EQ(igb_toeplitz(key, ones, sizeof ones), 0xbeac01fa >> 1 | (uint32_t)(key[35] & 1) << 31);
}

static void any_bytes_have_headers_inside_of_them(void) {
  uint8_t data[128];
  for (int i = 0; i < 200000; i++) {
    uint32_t length = (uint32_t)below(sizeof data), hash;
    fill(data, sizeof data);
    if (i % 4) { /* likely to be IP */
      static const uint8_t starts[][3] = {{8, 0, 0x45}, {8, 0, 0x47}, {0x86, 0xdd, 0x60}};
      memcpy(data + 12, starts[i % 3], 3);
      data[16] = data[18] = 0;
      data[20] &= i % 2 ? 0 : 0xff;
      data[i % 3 == 2 ? 20 : 23] = (uint8_t[]){6, 17, 132, 0, 43, 60}[below(6)];
    }
    struct igb_headers headers = igb_parse(data, length);
    if (!headers.kind)
      continue;
    CHECK(headers.end <= length && headers.l3 < headers.end);
    CHECK(headers.addresses + headers.n_addresses <= length);
    CHECK(!headers.l4 || headers.l4 + 8 <= headers.end);
    igb_l4_sum_is_right(data, &headers);
    if (headers.kind & IGB_IPV4)
      igb_ip_sum_is_right(data, &headers);
    igb_rss((uint32_t)below(1u << 24) << 8, key, data, &headers, &hash);
  }
}

static void any_context_makes_frames_that_hold_the_payload(void) {
  uint8_t *data = malloc(1 << 16);
  for (int i = 0; i < 2000; i++) {
    struct igb_context context = igb_context_of((uint32_t)test_random(&seed),
                                                (uint32_t)test_random(&seed),
                                                (uint32_t)test_random(&seed));
    size_t length = 1 + below(i % 2 ? 2000 : 1 << 16), payload = 0;
    struct igb_frames out = {0};
    fill(data, length);
    CHECK_EQ(igb_segment(data, length, &context, i & 1, i & 2, &out), 0);
    uint32_t head = context.mac_length + context.ip_length + context.l4_length;
    for (const struct igb_frame *frame = out.first; frame; frame = frame->next) {
      CHECK(frame->length > head && frame->length <= head + context.mss);
      CHECK(!memcmp(frame->data + head, data + head + payload, frame->length - head));
      payload += frame->length - head;
    }
    CHECK(!out.n || payload == length - head);
    igb_frames_free(&out);
    igb_insert_checksums(data, length, &context, 1, 1);
    igb_insert_sum(data, length, below(300), below(300));
  }
  free(data);
}

static void frames_have_room_for_tags_padding_and_an_fcs(void) {
  for (uint32_t length = 0; length < 80; length++) {
    struct igb_frame *frame = igb_frame_new(length);
    memset(frame->data, 7, length);
    igb_frame_insert_tag(frame, 0x8100, 5);
    igb_frame_pad(frame);
    CHECK_EQ(frame->length, length + 4 < 60 ? 60 : length + 4);
    igb_frame_append_fcs(frame);
    igb_frame_free(frame);
  }
}

static void masks_after_two_stores_in_an_unknown_order(void) {
  CHECK_EQ(igb_mask_after(0x0, 0x1, 0x1), 0x0);
  CHECK_EQ(igb_mask_after(0x1, 0x1, 0x1), 0x1);
  CHECK_EQ(igb_mask_after(0xc, 0x6, 0x3), 0x9);
  CHECK_EQ(igb_mask_after(0x8, UINT32_MAX, 0x1), 0x1);
}

/* ---- a machine: client memory from 0 on, BARs, nobody who listens ------------------------------- */

#define MEMORY (256u << 10)

struct machine {
  struct iommufs_device device; /* first: what the model is given */
  uint8_t *memory;
  uint8_t bars[4][IGB_BAR_SIZE];
  _Atomic int woken;
  uint64_t n_refused, n_lines;
};

static struct machine *machine_of(struct iommufs_device *device) {
  return (struct machine *)(void *)device;
}

static int dma_read(struct iommufs_device *device, uint64_t iova, void *buf, size_t length) {
  struct machine *machine = machine_of(device);
  if (iova > MEMORY || length > MEMORY - iova)
    return machine->n_refused++, -EFAULT;
  memcpy(buf, machine->memory + iova, length);
  return 0;
}

static int dma_write(struct iommufs_device *device, uint64_t iova, const void *buf,
                     size_t length) {
  struct machine *machine = machine_of(device);
  if (iova > MEMORY || length > MEMORY - iova)
    return machine->n_refused++, -EFAULT;
  memcpy(machine->memory + iova, buf, length);
  return 0;
}

static uint64_t load(struct iommufs_device *device, unsigned bar, uint64_t offset, unsigned size) {
  uint64_t value = 0;
  CHECK(bar < 4 && offset + size <= IGB_BAR_SIZE && offset % size == 0);
  memcpy(&value, machine_of(device)->bars[bar] + offset, size);
  return value;
}

static uint64_t exchange(struct iommufs_device *device, unsigned bar, uint64_t offset,
                         unsigned size, uint64_t value) {
  uint64_t before = load(device, bar, offset, size);
  memcpy(machine_of(device)->bars[bar] + offset, &value, size);
  return before;
}

static void store(struct iommufs_device *device, unsigned bar, uint64_t offset, unsigned size,
                  uint64_t value) {
  exchange(device, bar, offset, size, value);
}

static int watch(struct iommufs_device *device, unsigned bar, uint64_t offset, unsigned size) {
  (void)device;
  CHECK(!bar && size == 4 && offset < IGB_BAR_SIZE);
  return 0;
}

static void message(struct iommufs_device *device, unsigned vector) {
  (void)device;
  CHECK(vector < 32);
}

static void line(struct iommufs_device *device, int level) {
  machine_of(device)->n_lines += (uint64_t)level;
}

static int messages_on(struct iommufs_device *device) { return machine_of(device)->n_lines & 1; }

static void nothing(struct iommufs_device *device) { (void)device; }

static void wake(struct iommufs_device *device) { machine_of(device)->woken = 1; }

static int ended(struct iommufs_device *device) {
  (void)device;
  return 0;
}

static void report(struct iommufs_device *device, const char *text) { (void)device, (void)text; }

static const struct iommufs_device_calls calls = {
    .dma_read = dma_read,
    .dma_write = dma_write,
    .store = store,
    .load = load,
    .exchange = exchange,
    .watch = watch,
    .message = message,
    .line = line,
    .messages_on = messages_on,
    .lock = nothing,
    .unlock = nothing,
    .wake = wake,
    .ended = ended,
    .report = report,
};

static struct machine *make_machine(void) {
  struct machine *machine = calloc(1, sizeof *machine);
  machine->device.calls = &calls;
  machine->memory = calloc(1, MEMORY);
  return machine;
}

static void free_machine(struct machine *machine) {
  free(machine->memory);
  free(machine);
}

static void *make_model(const char *wire) {
  char error[64];
  const char *options[] = {wire, NULL};
  void *model = igb_model.create(options, error, sizeof error);
  CHECK(model);
  return model;
}

/* ---- a client that does anything --------------------------------------------------------------- */

static uint32_t some_register(void) {
  static const uint32_t regs[] = {IGB_CTRL, IGB_STATUS, IGB_EECD,   IGB_EERD, IGB_MDIC,   IGB_ICR,
                                  IGB_ICS,  IGB_IMS,    IGB_IMC,    IGB_RCTL, IGB_TCTL,   IGB_EICS,
                                  IGB_EIMS, IGB_EIMC,   IGB_EIAC,   IGB_EIAM, IGB_EICR,   IGB_GPIE,
                                  IGB_IVAR, IGB_MRQC,   IGB_RXCSUM, IGB_RETA, IGB_RLPML,  IGB_RXPBS,
                                  IGB_VFTA, IGB_RA + 4, IGB_MTA,    0x1504,   IGB_CTRL_EXT};
  static const uint32_t queue[] = {0x00, 0x04, 0x08, 0x0c, 0x10, 0x18, 0x28, 0x38};
  uint32_t reg = queue[below(8)];
  switch (below(3)) {
  case 0:
    return regs[below(sizeof regs / sizeof *regs)];
  case 1:
    return igb_rx_register((unsigned)below(3), reg);
  default:
    return igb_tx_register((unsigned)below(3), reg);
  }
}

static uint32_t some_value(uint32_t reg) {
  uint32_t value = (uint32_t)test_random(&seed);
  if (reg == IGB_RCTL || reg == IGB_TCTL)
    return below(8) ? (value & ~3u) | 2 | IGB_RCTL_LBM : value;
  if (reg == IGB_CTRL && below(4))
    return value & ~IGB_CTRL_RST;
  return (uint32_t[]){value, value & 0x3ff, value & 0x3ff80, IGB_QUEUE_ENABLE}[below(4)];
}

/* Descriptors that are likely to mean something. */
static void scribble(struct machine *machine) {
  for (int i = 0; i < 64; i++) {
    uint64_t at = below(64) * 16, words[2] = {below(MEMORY), test_random(&seed)};
    uint32_t low = (uint32_t)below(1u << below(17)) | (uint32_t)(2 + below(2)) << 20;
    low |= (uint32_t)(below(256) | (below(4) ? 0x23 : 0)) << 24;
    words[1] = (words[1] & ~0xffffffffull) | low;
    memcpy(machine->memory + at, words, sizeof words);
  }
}

static void a_client_that_does_anything(void) {
  struct machine *machine = make_machine();
  void *model = make_model("mac=02:00:00:00:00:01");
  void *port = igb_model.start(model, &machine->device);
  for (int i = 0; i < 60000; i++) {
    uint32_t reg = some_register(), value = some_value(reg);
    struct iommufs_store seen[] = {{reg, value, 0, 4}, {some_register(), value, 0, 4}};
    switch (below(8)) {
    case 0:
      scribble(machine);
      break;
    case 1:
      igb_model.read(port, 0, reg & ~7u, 1u << below(4));
      break;
    case 2:
      store(&machine->device, 0, reg, 4, value);
      igb_model.stores(port, seen, 1 + below(2));
      break;
    case 3:
      igb_model.write(port, (unsigned)below(4), reg & 0x1cu, 4, value);
      break;
    default:
      igb_model.write(port, 0, reg, 4, value);
    }
    for (int polls = 0; polls < 4 && igb_model.poll(port); polls++)
      ;
    if (!below(500)) { /* a reset */
      igb_model.end(port);
      port = igb_model.start(model, &machine->device);
    }
  }
  CHECK(machine->n_refused);
  igb_model.end(port);
  igb_model.destroy(model);
  free_machine(machine);
}

/* ---- no memory ---------------------------------------------------------------------------------- */

/* Three frames to itself: one plain, one of two pieces, one in segments. */
static void send_three(struct machine *machine, void *port) {
  const uint64_t words[][2] = {
      {MEMORY / 2, 0x2b300000 | 200},
      {MEMORY / 2, 0x22300000 | 100},
      {MEMORY / 2, 0x2b300000 | 100},
      {14 << 9 | 20, (uint64_t)(100u << 16 | 20 << 8) << 32 | 0x20200000 | 0xc00},
      {MEMORY / 2, 0xab300000 | 600},
  };
  memcpy(machine->memory, words, sizeof words);
  igb_model.write(port, 0, igb_tx_register(0, IGB_LEN), 4, 1024);
  igb_model.write(port, 0, igb_rx_register(0, IGB_BAL), 4, 1024);
  igb_model.write(port, 0, igb_rx_register(0, IGB_LEN), 4, 1024);
  igb_model.write(port, 0, igb_rx_register(0, IGB_TAIL), 4, 63);
  igb_model.write(port, 0, IGB_RCTL, 4,
                  IGB_RCTL_EN | IGB_RCTL_UPE | IGB_RCTL_MPE | IGB_RCTL_BAM | 1u << 6);
  igb_model.write(port, 0, IGB_TCTL, 4, IGB_TCTL_EN | IGB_TCTL_PSP);
  igb_model.write(port, 0, igb_tx_register(0, IGB_TAIL), 4, 5);
  while (igb_model.poll(port))
    ;
}

/* What fails is left out, and nothing else: the next frames arrive. */
static void the_nth_allocation_fails(void) {
  const char *options[] = {"wire=none", "pcap_out=/dev/null", NULL};
  struct machine *machine = make_machine();
  char error[64];
  for (uint64_t n = 1, left = 0; !left; n++) {
    iofs_fail_allocation(n);
    void *model = igb_model.create(options, error, sizeof error);
    void *port = model ? igb_model.start(model, &machine->device) : NULL;
    if (port)
      send_three(machine, port);
    left = iofs_fail_allocation(0);
    CHECK(model || !strcmp(error, "no memory"));
    if (port) {
      igb_model.write(port, 0, IGB_CTRL, 4, IGB_CTRL_RST);
      send_three(machine, port);
      CHECK_EQ(igb_model.read(port, 0, IGB_TPR, 4), 8); /* 600 bytes are 6 segments */
      igb_model.end(port);
    }
    if (model)
      igb_model.destroy(model);
  }
  free_machine(machine);
}

/* ---- a wire between threads --------------------------------------------------------------------- */

#define RING 64u
#define N_FRAMES 20500u

struct side {
  struct machine *machine;
  void *model, *port;
  pthread_mutex_t lock;
  _Atomic int stop;
  pthread_t thread;
};

static void write32(struct side *side, uint32_t reg, uint32_t value) {
  pthread_mutex_lock(&side->lock);
  igb_model.write(side->port, 0, reg, 4, value);
  pthread_mutex_unlock(&side->lock);
}

static uint32_t read32(struct side *side, uint32_t reg) {
  pthread_mutex_lock(&side->lock);
  uint32_t value = (uint32_t)igb_model.read(side->port, 0, reg, 4);
  pthread_mutex_unlock(&side->lock);
  return value;
}

/* The machine around it has one lock; poll() under it is more than the contract gives. */
static void *run(void *side_) {
  struct side *side = side_;
  while (!side->stop) {
    pthread_mutex_lock(&side->lock);
    igb_model.poll(side->port);
    pthread_mutex_unlock(&side->lock);
    sched_yield();
  }
  return NULL;
}

static void begin(struct side *side) {
  side->machine = make_machine();
  side->model = make_model("wire=threads");
  side->port = igb_model.start(side->model, &side->machine->device);
  pthread_mutex_init(&side->lock, NULL);
  CHECK(!pthread_create(&side->thread, NULL, run, side));
  write32(side, igb_tx_register(0, IGB_LEN), RING * 16);
  write32(side, igb_rx_register(0, IGB_BAL), RING * 16);
  write32(side, igb_rx_register(0, IGB_LEN), RING * 16);
  write32(side, igb_rx_register(0, IGB_SRRCTL), 1u << 25);
  write32(side, IGB_RCTL, IGB_RCTL_EN | IGB_RCTL_UPE | IGB_RCTL_MPE | IGB_RCTL_BAM);
  write32(side, IGB_TCTL, IGB_TCTL_EN | IGB_TCTL_PSP);
}

static void finish(struct side *side) {
  side->stop = 1;
  pthread_join(side->thread, NULL);
  igb_model.end(side->port);
  igb_model.destroy(side->model);
  pthread_mutex_destroy(&side->lock);
  free_machine(side->machine);
}

/* One frame more is to be sent, and what was received is given back. */
static void send_frame(struct side *side) {
  uint64_t words[] = {MEMORY / 2 + below(1000), 0x2b300000ull | (60 + below(1400))};
  uint32_t tail = read32(side, igb_tx_register(0, IGB_TAIL));
  pthread_mutex_lock(&side->lock);
  memcpy(side->machine->memory + 16 * tail, words, sizeof words);
  pthread_mutex_unlock(&side->lock);
  write32(side, igb_tx_register(0, IGB_TAIL), (tail + 1) % RING);
  write32(side, igb_rx_register(0, IGB_TAIL),
          (read32(side, igb_rx_register(0, IGB_HEAD)) + RING - 1) % RING);
}

/* Both send to each other as fast as they can, while one of them is reset now and then. */
static void two_ends_of_a_wire_in_two_threads(void) {
  struct side sides[2] = {0};
  time_t end = time(NULL) + 20;
  begin(&sides[0]);
  begin(&sides[1]);
  for (uint32_t i = 0; i < N_FRAMES; i++) {
    send_frame(&sides[i % 2]);
    if (i % 1000 == 998)
      write32(&sides[1], IGB_MDIC, 1u << 26 | 1u << 21 | 0x1940); /* its PHY without power */
    if (i % 1000 == 999) {
      write32(&sides[1], IGB_CTRL, IGB_CTRL_RST | IGB_CTRL_PHY_RST);
      finish(&sides[1]);
      sides[1] = (struct side){0};
      begin(&sides[1]);
    }
  }
  while (!read32(&sides[0], IGB_TPR) || !read32(&sides[1], IGB_TPR)) {
    CHECK(time(NULL) < end);
    send_frame(&sides[0]);
    send_frame(&sides[1]);
  }
  finish(&sides[0]);
  finish(&sides[1]);
}

int main(int argc, char **argv) {
  seed = test_seed(argc, argv);
  RUN(sums_are_those_of_words);
  RUN(the_fcs_is_that_of_ieee_802_3);
  RUN(hashes_are_those_that_were_published);
  RUN(any_bytes_have_headers_inside_of_them);
  RUN(any_context_makes_frames_that_hold_the_payload);
  RUN(frames_have_room_for_tags_padding_and_an_fcs);
  RUN(masks_after_two_stores_in_an_unknown_order);
  RUN(a_client_that_does_anything);
  RUN(the_nth_allocation_fails);
  RUN(two_ends_of_a_wire_in_two_threads);
  return 0;
}
