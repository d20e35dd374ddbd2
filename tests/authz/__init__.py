"""Tests of the package authz."""
