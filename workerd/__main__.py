"""`python -m workerd` is `workerd`."""

from __future__ import annotations

import sys

from workerd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
