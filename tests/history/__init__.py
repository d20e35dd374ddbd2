"""Histories that nobody thought of: what writers may do, what clients saw of it, and what may go wrong
meanwhile.
"""
