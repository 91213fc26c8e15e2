"""The tests, in rooms like those of chexseg/; tests of whole scripts, kills, ranks and faults are in pipeline/."""
