"""How one graph is executed. Knows nothing of diffusion."""

import os

# From 1.32 on ONNX Runtime's wheels send to Microsoft what they run, unless this is set before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
