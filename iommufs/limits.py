"""Numbers of Linux on x86-64 that more than one room needs, and the bounds of its ioctls."""

PAGE_SIZE = 4096
U64_MAX = 2**64 - 1
# Where user addresses end: a structure that reaches past it is EFAULT unread.
USER_LAST = 0x7FFFFFFFEFFF

CAP_IPC_LOCK = 14
CAP_SYS_RAWIO = 17
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24

# What poll() says of a file that has no poll operation: POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM.
DEFAULT_POLLMASK = 0x145

# Ours, not Linux': how many ranges ALLOW_IOVAS takes before it says ENOMEM.
MAX_ALLOWED_RANGES = 1 << 20
MAX_INVALIDATE_ENTRIES = 524288
MAX_INVALIDATE_LENGTH = PAGE_SIZE
MAX_VEVENTQ_DEPTH = 524288
MAX_IOEVENTFDS = 1000
# Of the test operations.
MAX_ACCESS_LENGTH = 16 << 20
MAX_DIRTY_BITS = (16 << 20) * 8
MAX_DMABUF_LENGTH = 512 * PAGE_SIZE
# Of the state of a migrated device, kept until it is loaded: ours too.
MAX_MIGRATION_LENGTH = 256 << 20
MAX_DMA_LOG_RANGES = PAGE_SIZE // 16
MAX_DMABUF_RANGES = 1 << 16
