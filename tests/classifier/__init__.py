"""Tests of chexseg/classifier."""
