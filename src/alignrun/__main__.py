"""`python -m alignrun`, for launchers that start modules."""

import sys

from alignrun.cli import main

sys.exit(main())
