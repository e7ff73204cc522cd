"""Kernels: which sets of nodes can run as one kernel (`build`), how its tile spans the domain (`frame`), with which block sizes (`configs`)."""
