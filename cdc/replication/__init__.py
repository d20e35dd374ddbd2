"""Reads the replication slot, decodes it, and hands committed transactions to the applier."""
