"""`python -m edgediffusion`: the command line."""

from edgediffusion.runtime.cli import script

script()
