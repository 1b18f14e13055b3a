"""Everything that measures the project: the demo, the tables, the pictures and the benchmarks. Nothing imports it."""
