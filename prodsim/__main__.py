"""`python -m prodsim`: the command line."""

import sys

from prodsim.cli import main

sys.exit(main())
