"""Everything that measures the project: the demo, the tables, the pictures and the benchmarks. Nothing imports it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
