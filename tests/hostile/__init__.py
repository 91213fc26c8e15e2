"""Files that a stranger may send, given to the scripts as a user would: refused by name, or the same result as ever.

`world` has one valid file of each kind, the `attacks_*` modules replace one of them each, `sandbox` runs the script with
limits, and `cases.attack` says what was wrong with how it ended. `test_attacks` runs them: a sample with every change,
all of them with `pytest -m soak tests/hostile`. `test_mutations` changes single bytes.
"""
