"""Tests of chexseg/evaluation."""
