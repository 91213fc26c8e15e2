"""No medicine in it: the command line, files, processes, shards, provenance."""
