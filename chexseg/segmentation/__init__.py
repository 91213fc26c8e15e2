"""Stages 6 and 7: segmentation networks, their samples and their masks."""
