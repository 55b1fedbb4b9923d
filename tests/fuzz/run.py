"""Run the fuzzer: `make fuzz`, or python tests/fuzz/run.py --help. See driver.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.path[0:1] = [str(TESTS.parent), str(TESTS)]
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    from fuzz.driver import main

    sys.exit(main())
