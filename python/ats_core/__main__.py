"""``python -m ats_core`` is the command ``ats-core``."""

import sys

from ats_core.command import main

if __name__ == "__main__":
    sys.exit(main())
