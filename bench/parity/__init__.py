"""Samplers against diffusers, step by step."""
