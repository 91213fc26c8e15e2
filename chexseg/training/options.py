"""The names that options of training choose from."""

PRECISIONS = ("auto", "fp32", "bf16")
