"""Stages 3 and 4: relation labels, the boundary network, the random walk."""
