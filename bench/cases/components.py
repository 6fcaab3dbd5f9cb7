"""The networks one by one, each at the batch and size of a generation."""

from __future__ import annotations

from edgediffusion.runtime.tokenizer import MAX_LENGTH

from ..feeds import random_feeds
from ..schema import Parameters
from ..session import Session

PROMPTS = 2  # the negative one, and the prompt


def text_encoder(session: Session) -> None:
    """The prompt and the negative prompt."""
    graph(session, "text_encoder", "text_encoder", sizes(session, "text_encoder"))


def unet(session: Session) -> None:
    """One step of one picture."""
    graph(session, "unet", "unet", sizes(session, "unet"))


def vae_decoder(session: Session) -> None:
    """One picture."""
    graph(session, "vae_decoder", "vae_decoder", sizes(session, "vae_decoder"))


def graph(session: Session, case: str, name: str, parameters: Parameters) -> None:
    """Time the graph `name` with free dimensions at `parameters`; fixed ones stay what they are."""
    spec = session.manifest.graphs[name].spec
    session.in_turn(case, name, parameters, random_feeds(spec, dict(parameters)))


def sizes(session: Session, name: str, *, latent: int | None = None, rows: int | None = None) -> dict[str, int]:
    """The free dimensions of the graph `name` for one picture of the model's own size."""
    latent = session.settings.latent if latent is None else latent
    if name.startswith("text_encoder"):
        return {"batch": PROMPTS}
    found = {"height": latent, "width": latent}
    if name == "vae_decoder":
        return {"batch": 1, **found}
    rows = session.settings.branches if rows is None else rows
    return {"batch": rows, **found, "sequence_length": MAX_LENGTH}
