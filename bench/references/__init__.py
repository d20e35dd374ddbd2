"""The alternatives to pads-cdc, and programs that show the limits that nothing can beat.

Their code is tuned.
"""
