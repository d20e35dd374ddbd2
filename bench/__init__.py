"""Benchmarks: ours beside what people would use instead, on the same data in the same run.

``make bench`` and ``make bench-full``, or ``python -m bench ripple latency``. See docs/performance.md.
"""
