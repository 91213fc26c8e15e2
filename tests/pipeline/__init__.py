"""Tests of the scripts: their options, their files, kills, ranks and faults."""
