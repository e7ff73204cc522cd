"""Kernels: what runs as one (`kernel`), how its tile spans the domain (`frame`), with which block sizes (`configs`)."""
