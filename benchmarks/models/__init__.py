"""The networks that the papers measured, and those that users run today, in Flax (linen, NHWC, inference).

A module a family; `registry` names them, with their sizes and batches, for the benchmarks and the tests.
"""
