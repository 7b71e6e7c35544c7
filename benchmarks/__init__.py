"""Benchmarks for asv (`bench_*.py`), and scripts, each a command of its own."""

import sys
from pathlib import Path

# asv imports every module of this folder as `benchmarks.…`, the scripts too, which import each other as neighbours.
sys.path.append(str(Path(__file__).parent))
