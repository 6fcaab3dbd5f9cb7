"""Packs: a bundle as one file, to be sent, checked and run."""
