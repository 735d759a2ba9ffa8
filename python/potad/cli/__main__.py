"""`python -m potad.cli` is `potad`."""

import sys

from potad.cli import main

sys.exit(main())
