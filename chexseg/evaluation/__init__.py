"""Scores, intervals, tables and pictures; it is handed masks and maps, and knows no network."""
