"""The command line, as a process."""

from __future__ import annotations

import sys

COMMAND = [sys.executable, "-c", "import sys; from edgediffusion.runtime.cli import main; sys.exit(main())"]
