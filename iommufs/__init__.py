"""A working /dev/iommu and VFIO devices on any Linux machine, in userspace."""
