"""Tests of chexseg/irnet."""
