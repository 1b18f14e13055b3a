"""What ActiveFT is compared with: other ways to choose a subset of a pool, one public function per method.

They choose from features (n, d) of unit rows as ActiveFT does (CoreSet: of rows as extracted), know of labelled and
excluded samples, and hold the features, a few numbers per sample, and a chunk of similarities at a time.
"""
