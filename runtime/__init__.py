"""The denoising loop and what is around it, in NumPy."""
