"""Stable Diffusion without PyTorch at inference time."""

__version__ = "0.1.0"
