"""Tests of pads_cdc_client."""
