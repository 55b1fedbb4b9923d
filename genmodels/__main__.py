"""python -m genmodels: the same as `genmodels`, so that `accelerate launch -m genmodels` works."""

from __future__ import annotations

import sys

from genmodels.cli import main

sys.exit(main())
