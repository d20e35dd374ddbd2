"""Benchmarks: pads-cdc beside its alternatives, on the same data in the same run.

Run ``make bench`` or ``make bench-full``, or ``python -m bench ripple latency``. See docs/performance.md.
"""
