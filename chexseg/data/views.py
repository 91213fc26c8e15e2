"""Views of a chest that a stage may read; light to import, for parsers."""

VIEWS = ("frontal", "lateral", "all")
