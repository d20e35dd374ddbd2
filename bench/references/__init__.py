"""The alternatives to pads-cdc, and the limits that nothing can beat, as tuned code."""
