"""Benchmarks of pads-cdc and its alternatives, on the same data and in the same run.

Run ``make bench`` or ``make bench-full``, or ``python -m bench ripple latency``. See docs/performance.md.
"""
