"""Measurements: latency, memory, quality."""
