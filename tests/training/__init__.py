"""Tests of chexseg/training."""
