"""How the cost grows with the work: steps, batch, pixels."""

from __future__ import annotations

from ..session import Session, picture_settings
from .components import graph, sizes

STEPS = (5, 10, 20, 50)
_EDGES = (1, 2, 3, 4)  # halves of the model's own edge


def growth(session: Session) -> None:
    """Pictures by steps; the UNet by batch, and by pixels."""
    for steps in STEPS:
        told = picture_settings(session, steps=steps)
        session.in_turn("growth-steps", "picture", {"steps": steps}, **told)
    if session.manifest.static is not None:
        session.skip("growth by batch and pixels: skipped, the graphs of this bundle are for one size only")
        return
    for batch in session.settings.batches:
        rows = session.settings.branches * batch
        graph(session, "growth-batch", "unet", sizes(session, "unet", rows=rows))
    for edge in _EDGES:
        graph(session, "growth-pixels", "unet", sizes(session, "unet", latent=edge * session.settings.latent // 2))
