"""Tests of the clients in examples/go."""
