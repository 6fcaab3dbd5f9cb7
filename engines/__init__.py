"""How one graph is executed. Knows nothing of diffusion."""
