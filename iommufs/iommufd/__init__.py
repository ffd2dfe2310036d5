"""iommufd: contexts, object ids, I/O address spaces, page tables, bound devices."""
