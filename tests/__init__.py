"""Tests on real Postgres and real gRPC; the folders mirror the code."""
