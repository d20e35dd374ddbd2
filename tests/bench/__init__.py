"""Tests of the package cdc."""
