"""One training run, from its start to its record. Begin with `run.train`."""
