"""Reads a mapping: its queries, its tables, and the rules that say which endpoints a row affects. Nothing
here waits for I/O.
"""
