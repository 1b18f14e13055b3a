"""What to label: features of the pool (extraction.py, from the networks of backbones.py), then a subset of it."""
