"""Tests of chexseg/data."""
