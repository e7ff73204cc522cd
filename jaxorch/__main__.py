"""`python -m jaxorch`."""

import sys

from jaxorch.cli import main

sys.exit(main())
