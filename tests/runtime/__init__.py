"""Tests of chexseg/runtime."""
