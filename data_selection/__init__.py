"""Choose what to label: features of the pool (extraction.py, networks in backbones.py), then a subset of it."""
