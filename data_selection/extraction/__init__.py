"""Stage 1: backbones.py says which network, weights and token; extraction.py computes a feature file with them."""
