"""Baselines to compare ActiveFT with: other ways to choose a subset of a pool, one public function per method.

Like ActiveFT, they choose from unit rows (n, d) (CoreSet: from rows as extracted) and respect labelled and excluded
samples. In memory they hold the features, a few numbers per sample, and a chunk of similarities at a time.
"""
