"""Emulated IOMMUs: drivers behind the contract of iommufd/iommu.py."""
