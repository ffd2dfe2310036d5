/* SPDX-License-Identifier: MIT */
/*
 * The ioctl interface of /dev/iommu as of Linux 7.3, restated for iommufs.
 *
 * Every structure starts with its own `size` in bytes. A caller may pass a shorter, older structure
 * (the rest counts as zero) or a longer one if what the service does not know is zero (else E2BIG).
 * Reserved fields must be zero. Addresses of the caller travel as 64-bit numbers. IOVA ranges are
 * closed where they are written `start`/`last`; `length` is in bytes.
 */
#ifndef _IOMMUFD_H
#define _IOMMUFD_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define IOMMUFD_TYPE (';')

enum {
  IOMMUFD_CMD_BASE = 0x80,
  IOMMUFD_CMD_DESTROY = IOMMUFD_CMD_BASE,
  IOMMUFD_CMD_IOAS_ALLOC = 0x81,
  IOMMUFD_CMD_IOAS_ALLOW_IOVAS = 0x82,
  IOMMUFD_CMD_IOAS_COPY = 0x83,
  IOMMUFD_CMD_IOAS_IOVA_RANGES = 0x84,
  IOMMUFD_CMD_IOAS_MAP = 0x85,
  IOMMUFD_CMD_IOAS_UNMAP = 0x86,
  IOMMUFD_CMD_OPTION = 0x87,
  IOMMUFD_CMD_VFIO_IOAS = 0x88,
  IOMMUFD_CMD_HWPT_ALLOC = 0x89,
  IOMMUFD_CMD_GET_HW_INFO = 0x8a,
  IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING = 0x8b,
  IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP = 0x8c,
  IOMMUFD_CMD_HWPT_INVALIDATE = 0x8d,
  IOMMUFD_CMD_FAULT_QUEUE_ALLOC = 0x8e,
  IOMMUFD_CMD_IOAS_MAP_FILE = 0x8f,
  IOMMUFD_CMD_VIOMMU_ALLOC = 0x90,
  IOMMUFD_CMD_VDEVICE_ALLOC = 0x91,
  IOMMUFD_CMD_IOAS_CHANGE_PROCESS = 0x92,
  IOMMUFD_CMD_VEVENTQ_ALLOC = 0x93,
  IOMMUFD_CMD_HW_QUEUE_ALLOC = 0x94,
  IOMMUFD_CMD_IOAS_NOIOMMU_GET_PA = 0x95,
};

/* ---- any object ------------------------------------------------------------------------------ */

/* Free an object by its id; EBUSY while another object uses it. */
struct iommu_destroy {
  __u32 size;
  __u32 id;
};
#define IOMMU_DESTROY _IO(IOMMUFD_TYPE, IOMMUFD_CMD_DESTROY)

/* ---- IOAS: an I/O address space -------------------------------------------------------------- */

/* Make an empty address space. */
struct iommu_ioas_alloc {
  __u32 size;
  __u32 flags; /* 0 */
  __u32 out_ioas_id;
};
#define IOMMU_IOAS_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_ALLOC)

struct iommu_iova_range {
  __aligned_u64 start;
  __aligned_u64 last; /* inclusive */
};

/*
 * List where mappings may lie now. num_iovas: in the room in the array, out the number of ranges;
 * EMSGSIZE if there are more than fit, with as many written as do.
 */
struct iommu_ioas_iova_ranges {
  __u32 size;
  __u32 ioas_id;
  __u32 num_iovas;
  __u32 __reserved;
  __aligned_u64 allowed_iovas;      /* address of struct iommu_iova_range[num_iovas] */
  __aligned_u64 out_iova_alignment; /* bytes, a power of two */
};
#define IOMMU_IOAS_IOVA_RANGES _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_IOVA_RANGES)

/* Promise ranges to this address space: a device that would reserve a part of them is refused. */
struct iommu_ioas_allow_iovas {
  __u32 size;
  __u32 ioas_id;
  __u32 num_iovas;
  __u32 __reserved;
  __aligned_u64 allowed_iovas; /* address of struct iommu_iova_range[num_iovas] */
};
#define IOMMU_IOAS_ALLOW_IOVAS _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_ALLOW_IOVAS)

/* FIXED_IOVA: map at `iova`; else a free place is chosen and written there. */
enum iommufd_ioas_map_flags {
  IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0,
  IOMMU_IOAS_MAP_WRITEABLE = 1 << 1, /* the device may write */
  IOMMU_IOAS_MAP_READABLE = 1 << 2,  /* the device may read */
};

/* Map memory of the caller. */
struct iommu_ioas_map {
  __u32 size;
  __u32 flags; /* enum iommufd_ioas_map_flags */
  __u32 ioas_id;
  __u32 __reserved;
  __aligned_u64 user_va;
  __aligned_u64 length;
  __aligned_u64 iova;
};
#define IOMMU_IOAS_MAP _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_MAP)

/* Map a part of a memfd or other memory file. */
struct iommu_ioas_map_file {
  __u32 size;
  __u32 flags; /* enum iommufd_ioas_map_flags */
  __u32 ioas_id;
  __s32 fd;
  __aligned_u64 start; /* offset in the file */
  __aligned_u64 length;
  __aligned_u64 iova;
};
#define IOMMU_IOAS_MAP_FILE _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_MAP_FILE)

/* Map what is mapped at src_iova a second time, in the same or another address space. */
struct iommu_ioas_copy {
  __u32 size;
  __u32 flags; /* enum iommufd_ioas_map_flags, about dst_iova */
  __u32 dst_ioas_id;
  __u32 src_ioas_id;
  __aligned_u64 length;
  __aligned_u64 dst_iova;
  __aligned_u64 src_iova;
};
#define IOMMU_IOAS_COPY _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_COPY)

/*
 * Unmap whole mappings. length: out the bytes unmapped. iova 0 with length 2^64 - 1 means
 * everything.
 */
struct iommu_ioas_unmap {
  __u32 size;
  __u32 ioas_id;
  __aligned_u64 iova;
  __aligned_u64 length;
};
#define IOMMU_IOAS_UNMAP _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_UNMAP)

/* Let the calling process, which inherited this file, take over its mappings of files. */
struct iommu_ioas_change_process {
  __u32 size;
  __u32 __reserved;
};
#define IOMMU_IOAS_CHANGE_PROCESS _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_CHANGE_PROCESS)

/* For devices without an IOMMU: the physical address behind an IOVA, and how far it goes on. */
struct iommu_ioas_noiommu_get_pa {
  __u32 size;
  __u32 flags; /* 0 */
  __u32 ioas_id;
  __u32 __reserved;
  __aligned_u64 iova;
  __aligned_u64 length;
  __aligned_u64 out_phys;
};
#define IOMMU_IOAS_NOIOMMU_GET_PA _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_NOIOMMU_GET_PA)

/* ---- options --------------------------------------------------------------------------------- */

/* RLIMIT_MODE: pinned memory is charged to 0 the user, 1 the process. HUGE_PAGES: 0 or 1. */
enum iommufd_option {
  IOMMU_OPTION_RLIMIT_MODE = 0,
  IOMMU_OPTION_HUGE_PAGES = 1,
};

enum iommufd_option_ops {
  IOMMU_OPTION_OP_SET = 0,
  IOMMU_OPTION_OP_GET = 1,
};

/* Set or read an option of the whole file (object_id 0) or of an object. */
struct iommu_option {
  __u32 size;
  __u32 option_id; /* enum iommufd_option */
  __u16 op;        /* enum iommufd_option_ops */
  __u16 __reserved;
  __u32 object_id;
  __aligned_u64 val64;
};
#define IOMMU_OPTION _IO(IOMMUFD_TYPE, IOMMUFD_CMD_OPTION)

/* ---- the IOAS behind VFIO's container ioctls ------------------------------------------------- */

enum iommufd_vfio_ioas_op {
  IOMMU_VFIO_IOAS_GET = 0,
  IOMMU_VFIO_IOAS_SET = 1,
  IOMMU_VFIO_IOAS_CLEAR = 2,
};

struct iommu_vfio_ioas {
  __u32 size;
  __u32 ioas_id;
  __u16 op; /* enum iommufd_vfio_ioas_op */
  __u16 __reserved;
};
#define IOMMU_VFIO_IOAS _IO(IOMMUFD_TYPE, IOMMUFD_CMD_VFIO_IOAS)

/* ---- HWPT: the page table that an IOMMU walks ------------------------------------------------ */

enum iommufd_hwpt_alloc_flags {
  IOMMU_HWPT_ALLOC_NEST_PARENT = 1 << 0,    /* may be the stage 2 below a guest's stage 1 */
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING = 1 << 1, /* refuse devices that cannot track */
  IOMMU_HWPT_FAULT_ID_VALID = 1 << 2,       /* fault_id names a fault queue */
  IOMMU_HWPT_ALLOC_PASID = 1 << 3,          /* may be attached to a PASID */
};

enum iommu_hwpt_data_type {
  IOMMU_HWPT_DATA_NONE = 0,
  IOMMU_HWPT_DATA_VTD_S1 = 1,
  IOMMU_HWPT_DATA_ARM_SMMUV3 = 2,
  IOMMU_HWPT_DATA_AMD_GUEST = 3,
};

enum iommu_hwpt_vtd_s1_flags {
  IOMMU_VTD_S1_SRE = 1 << 0,  /* supervisor requests */
  IOMMU_VTD_S1_EAFE = 1 << 1, /* extended access flag */
  IOMMU_VTD_S1_WPE = 1 << 2,  /* write protect */
};

/* A guest's first-stage table, Intel VT-d. */
struct iommu_hwpt_vtd_s1 {
  __aligned_u64 flags; /* enum iommu_hwpt_vtd_s1_flags */
  __aligned_u64 pgtbl_addr;
  __u32 addr_width; /* bits */
  __u32 __reserved;
};

/* A guest's stream table entry, Arm SMMUv3: its first two words, little endian. */
struct iommu_hwpt_arm_smmuv3 {
  __le64 ste[2];
};

/* A guest's device table entry, AMD. */
struct iommu_hwpt_amd_guest {
  __aligned_u64 dte[4];
};

struct iommu_hwpt_alloc {
  __u32 size;
  __u32 flags; /* enum iommufd_hwpt_alloc_flags */
  __u32 dev_id;
  __u32 pt_id; /* an IOAS, or for a nested table its parent HWPT or vIOMMU */
  __u32 out_hwpt_id;
  __u32 __reserved;
  __u32 data_type; /* enum iommu_hwpt_data_type */
  __u32 data_len;
  __aligned_u64 data_uptr;
  __u32 fault_id;
  __u32 __reserved2;
};
#define IOMMU_HWPT_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_HWPT_ALLOC)

/* ---- what the IOMMU of a device can do ------------------------------------------------------- */

enum iommu_hw_info_vtd_flags {
  IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 = 1 << 0, /* no read-only mappings below a nested table */
};

struct iommu_hw_info_vtd {
  __u32 flags; /* enum iommu_hw_info_vtd_flags */
  __u32 __reserved;
  __aligned_u64 cap_reg;
  __aligned_u64 ecap_reg;
};

enum iommu_hw_info_arm_smmuv3_flags {
  IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI = 1 << 0,
};

/* The ID registers of an Arm SMMUv3. */
struct iommu_hw_info_arm_smmuv3 {
  __u32 flags; /* enum iommu_hw_info_arm_smmuv3_flags */
  __u32 __reserved;
  __u32 idr[6];
  __u32 iidr;
  __u32 aidr;
};

struct iommu_hw_info_tegra241_cmdqv {
  __u32 flags; /* 0 */
  __u8 version;
  __u8 log2vcmdqs; /* queues of one virtual interface */
  __u8 log2vsids;  /* stream ids of one virtual interface */
  __u8 __reserved;
};

/* The extended feature registers of an AMD IOMMU. */
struct iommu_hw_info_amd {
  __aligned_u64 efr;
  __aligned_u64 efr2;
};

enum iommu_hw_info_type {
  IOMMU_HW_INFO_TYPE_NONE = 0,
  IOMMU_HW_INFO_TYPE_DEFAULT = 0,
  IOMMU_HW_INFO_TYPE_INTEL_VTD = 1,
  IOMMU_HW_INFO_TYPE_ARM_SMMUV3 = 2,
  IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV = 3,
  IOMMU_HW_INFO_TYPE_AMD = 4,
};

enum iommufd_hw_capabilities {
  IOMMU_HW_CAP_DIRTY_TRACKING = 1 << 0,
  IOMMU_HW_CAP_PCI_PASID_EXEC = 1 << 1,
  IOMMU_HW_CAP_PCI_PASID_PRIV = 1 << 2,
  IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED = 1 << 3,
};

enum iommufd_hw_info_flags {
  IOMMU_HW_INFO_FLAG_INPUT_TYPE = 1 << 0, /* in_data_type says which answer is wanted */
};

/* data_len: in the room at data_uptr, out the length of what there is to say. */
struct iommu_hw_info {
  __u32 size;
  __u32 flags; /* enum iommufd_hw_info_flags */
  __u32 dev_id;
  __u32 data_len;
  __aligned_u64 data_uptr;
  union {
    __u32 in_data_type;  /* enum iommu_hw_info_type */
    __u32 out_data_type; /* enum iommu_hw_info_type */
  };
  __u8 out_max_pasid_log2; /* 0: no PASID */
  __u8 __reserved[3];
  __aligned_u64 out_capabilities; /* enum iommufd_hw_capabilities */
};
#define IOMMU_GET_HW_INFO _IO(IOMMUFD_TYPE, IOMMUFD_CMD_GET_HW_INFO)

/* ---- dirty tracking -------------------------------------------------------------------------- */

enum iommufd_hwpt_set_dirty_tracking_flags {
  IOMMU_HWPT_DIRTY_TRACKING_ENABLE = 1 << 0,
};

struct iommu_hwpt_set_dirty_tracking {
  __u32 size;
  __u32 flags; /* enum iommufd_hwpt_set_dirty_tracking_flags */
  __u32 hwpt_id;
  __u32 __reserved;
};
#define IOMMU_HWPT_SET_DIRTY_TRACKING _IO(IOMMUFD_TYPE, IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING)

enum iommufd_hwpt_get_dirty_bitmap_flags {
  IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR = 1 << 0,
};

/* Set the bit of every page written since the last call; bits of other pages are left alone. */
struct iommu_hwpt_get_dirty_bitmap {
  __u32 size;
  __u32 hwpt_id;
  __u32 flags; /* enum iommufd_hwpt_get_dirty_bitmap_flags */
  __u32 __reserved;
  __aligned_u64 iova;
  __aligned_u64 length;
  __aligned_u64 page_size; /* bytes for each bit */
  __aligned_u64 data;      /* address of the bitmap, 64-bit words */
};
#define IOMMU_HWPT_GET_DIRTY_BITMAP _IO(IOMMUFD_TYPE, IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP)

/* ---- invalidation of a nested table or a vIOMMU ---------------------------------------------- */

enum iommu_hwpt_invalidate_data_type {
  IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 = 0,
  IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 = 1,
};

enum iommu_hwpt_vtd_s1_invalidate_flags {
  IOMMU_VTD_INV_FLAGS_LEAF = 1 << 0, /* only the last level changed */
};

/* addr 0 with npages 2^64 - 1 means everything. */
struct iommu_hwpt_vtd_s1_invalidate {
  __aligned_u64 addr;
  __aligned_u64 npages; /* of 4 KiB */
  __u32 flags;          /* enum iommu_hwpt_vtd_s1_invalidate_flags */
  __u32 __reserved;
};

/* One command of the guest's command queue, little endian. */
struct iommu_viommu_arm_smmuv3_invalidate {
  __le64 cmd[2];
};

/* entry_num: in the requests at data_uptr, out how many of them were done. */
struct iommu_hwpt_invalidate {
  __u32 size;
  __u32 hwpt_id; /* a nested HWPT or a vIOMMU */
  __aligned_u64 data_uptr;
  __u32 data_type; /* enum iommu_hwpt_invalidate_data_type */
  __u32 entry_len; /* bytes from one request to the next */
  __u32 entry_num;
  __u32 __reserved;
};
#define IOMMU_HWPT_INVALIDATE _IO(IOMMUFD_TYPE, IOMMUFD_CMD_HWPT_INVALIDATE)

/* ---- page faults, answered by the caller ----------------------------------------------------- */

enum iommu_hwpt_pgfault_flags {
  IOMMU_PGFAULT_FLAGS_PASID_VALID = 1 << 0,
  IOMMU_PGFAULT_FLAGS_LAST_PAGE = 1 << 1, /* the last of its group */
};

enum iommu_hwpt_pgfault_perm {
  IOMMU_PGFAULT_PERM_READ = 1 << 0,
  IOMMU_PGFAULT_PERM_WRITE = 1 << 1,
  IOMMU_PGFAULT_PERM_EXEC = 1 << 2,
  IOMMU_PGFAULT_PERM_PRIV = 1 << 3,
};

/* What read() of a fault queue returns, one or more of them. */
struct iommu_hwpt_pgfault {
  __u32 flags; /* enum iommu_hwpt_pgfault_flags */
  __u32 dev_id;
  __u32 pasid;
  __u32 grpid;
  __u32 perm; /* enum iommu_hwpt_pgfault_perm */
  __u32 __reserved;
  __aligned_u64 addr;
  __u32 length; /* a hint in bytes */
  __u32 cookie; /* names the group in the answer */
};

enum iommufd_page_response_code {
  IOMMUFD_PAGE_RESP_SUCCESS = 0, /* the device may try again */
  IOMMUFD_PAGE_RESP_INVALID = 1, /* the access fails */
};

/* What write() to a fault queue takes. */
struct iommu_hwpt_page_response {
  __u32 cookie;
  __u32 code; /* enum iommufd_page_response_code */
};

struct iommu_fault_alloc {
  __u32 size;
  __u32 flags; /* 0 */
  __u32 out_fault_id;
  __u32 out_fault_fd;
};
#define IOMMU_FAULT_QUEUE_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_FAULT_QUEUE_ALLOC)

/* ---- vIOMMU: a guest's share of an IOMMU ----------------------------------------------------- */

enum iommu_viommu_type {
  IOMMU_VIOMMU_TYPE_DEFAULT = 0,
  IOMMU_VIOMMU_TYPE_ARM_SMMUV3 = 1,
  IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV = 2,
};

/* Where to mmap() the guest's page of queue registers on the iommufd. */
struct iommu_viommu_tegra241_cmdqv {
  __aligned_u64 out_vintf_mmap_offset;
  __aligned_u64 out_vintf_mmap_length;
};

struct iommu_viommu_alloc {
  __u32 size;
  __u32 flags; /* 0 */
  __u32 type;  /* enum iommu_viommu_type */
  __u32 dev_id;
  __u32 hwpt_id; /* a nest parent */
  __u32 out_viommu_id;
  __u32 data_len;
  __u32 __reserved;
  __aligned_u64 data_uptr;
};
#define IOMMU_VIOMMU_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_VIOMMU_ALLOC)

/* Tell a vIOMMU under which number its guest knows a device. */
struct iommu_vdevice_alloc {
  __u32 size;
  __u32 viommu_id;
  __u32 dev_id;
  __u32 out_vdevice_id;
  __aligned_u64 virt_id;
};
#define IOMMU_VDEVICE_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_VDEVICE_ALLOC)

/* ---- events for a guest's IOMMU driver ------------------------------------------------------- */

enum iommu_veventq_flag {
  IOMMU_VEVENTQ_FLAG_LOST_EVENTS = 1U << 0, /* the queue was full; no event follows this header */
};

/* In front of every event that read() returns. */
struct iommufd_vevent_header {
  __u32 flags;    /* enum iommu_veventq_flag */
  __u32 sequence; /* counts events, lost ones too; wraps at 2^31 */
};

enum iommu_veventq_type {
  IOMMU_VEVENTQ_TYPE_DEFAULT = 0,
  IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 = 1,
  IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV = 2,
};

/* One record of the event queue, with the guest's stream id. */
struct iommu_vevent_arm_smmuv3 {
  __le64 evt[4];
};

struct iommu_vevent_tegra241_cmdqv {
  __le64 lvcmdq_err_map[2]; /* a bit for each queue in error */
};

struct iommu_veventq_alloc {
  __u32 size;
  __u32 flags; /* 0 */
  __u32 viommu_id;
  __u32 type; /* enum iommu_veventq_type */
  __u32 veventq_depth;
  __u32 out_veventq_id;
  __u32 out_veventq_fd;
  __u32 __reserved;
};
#define IOMMU_VEVENTQ_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_VEVENTQ_ALLOC)

/* ---- queues that the hardware reads from guest memory ---------------------------------------- */

enum iommu_hw_queue_type {
  IOMMU_HW_QUEUE_TYPE_DEFAULT = 0,
  IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV = 1,
};

struct iommu_hw_queue_alloc {
  __u32 size;
  __u32 flags; /* 0 */
  __u32 viommu_id;
  __u32 type; /* enum iommu_hw_queue_type */
  __u32 index;
  __u32 out_hw_queue_id;
  __aligned_u64 nesting_parent_iova; /* where the queue lies */
  __aligned_u64 length;
};
#define IOMMU_HW_QUEUE_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_HW_QUEUE_ALLOC)

#endif
