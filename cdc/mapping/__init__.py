"""Reads a mapping: its queries, its tables, and the rules for the endpoints that a row affects. No I/O waits
here.
"""
