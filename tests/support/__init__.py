"""What tests of several folders share and is no fixture."""
