"""Stubs generated from proto/ (see the Makefile); never edited by hand."""
