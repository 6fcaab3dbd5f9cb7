"""How the built-in model was made: data recipe and training."""
