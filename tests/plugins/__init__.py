"""The fixtures, one subject a plugin; `tests/conftest.py` registers them."""
