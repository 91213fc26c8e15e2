"""Tests of chexseg/segmentation."""
