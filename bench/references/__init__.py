"""What people would use instead, and the limits that nothing can beat: honest, tuned code."""
