"""Attention kernels that only accelerators run."""
