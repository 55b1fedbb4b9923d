"""python -m genmodels.cli: the `genmodels` command."""

from __future__ import annotations

import sys

from genmodels.cli import main

sys.exit(main())
