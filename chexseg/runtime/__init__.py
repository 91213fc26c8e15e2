"""The command line, files, processes, shards and provenance: what any batch pipeline needs. No medicine in it."""
