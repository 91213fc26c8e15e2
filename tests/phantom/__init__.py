"""Tests of chexseg/phantom."""
