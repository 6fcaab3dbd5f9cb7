"""`python -m edgediffusion.bench`: the command `edgediffusion bench`."""

import sys

from edgediffusion.runtime.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
