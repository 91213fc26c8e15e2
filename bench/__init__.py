"""Fair comparisons in one run: what CheXseg does against what one would otherwise use, and against the floor."""
