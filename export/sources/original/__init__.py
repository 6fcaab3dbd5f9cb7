"""The layout of the original code (CompVis, Stability AI): one file, with keys and settings of its own."""
