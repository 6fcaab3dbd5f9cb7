"""CLIP's text towers: token ids to what the UNet attends to. Names of inputs and outputs are optimum's."""

from __future__ import annotations

from functools import partial

import numpy as np

from edgediffusion.engines.spec import GraphSpec, TensorSpec

from ..sources import Config
from ..wrappers import ProjectedTextEncoder, TextEncoder
from .base import POSITION_IDS, Network, Sample, Seen

PROMPTS = 2  # the runtime encodes the negative prompt and the prompt at once
BATCHES = ((5, -1), (0,), (12, 1))  # words of each prompt; -1: as many as there is room for


def text_encoder_spec(config: Config, *, hidden_states: bool) -> GraphSpec:
    """A vector for each token, one for the prompt, and the output of each layer if `hidden_states` asks for it."""
    layers = _layers(config) if hidden_states else ()
    pooled = TensorSpec("pooler_output", "float32", ("batch", config["hidden_size"]))
    return GraphSpec("text_encoder", (_input_ids(config),), (_tokens("last_hidden_state", config), pooled, *layers))


def projected_text_encoder_spec(config: Config) -> GraphSpec:
    """A projected vector for the prompt, one for each token, and the output of each layer."""
    projected = TensorSpec("text_embeds", "float32", ("batch", config["projection_dim"]))
    outputs = (projected, _tokens("last_hidden_state", config), *_layers(config))
    return GraphSpec("text_encoder_2", (_input_ids(config),), outputs)


def _input_ids(config: Config) -> TensorSpec:
    return TensorSpec("input_ids", "int64", ("batch", config["max_position_embeddings"]))


def _tokens(name: str, config: Config) -> TensorSpec:
    return TensorSpec(name, "float32", ("batch", config["max_position_embeddings"], config["hidden_size"]))


def _layers(config: Config) -> tuple[TensorSpec, ...]:
    """What enters the first layer, and what leaves each one: the last is before the final normalisation."""
    return tuple(_tokens(f"hidden_states.{i}", config) for i in range(config["num_hidden_layers"] + 1))


def text_encoder_samples(config: Config, seen: Seen) -> list[Sample]:
    """Prompts of many lengths. As in every CLIP vocabulary the last two tokens mark the start and the end."""
    length, start, end = config["max_position_embeddings"], config["vocab_size"] - 2, config["vocab_size"] - 1
    rng = np.random.default_rng(0)

    def prompt(words: int) -> list[int]:
        return [start, *rng.integers(start, size=words).tolist(), *[end] * (length - 1 - words)]

    batches = [[length - 2 if words < 0 else words for words in batch] for batch in BATCHES]
    return [
        Sample(
            f"prompts of {' and '.join(map(str, words))} tokens", {"input_ids": np.array([prompt(n) for n in words])}
        )
        for words in batches
    ]


def text_encoder(*, hidden_states: bool) -> Network:
    """`text_encoder` of SD 1.x and 2.x, and with `hidden_states` that of SDXL."""
    return Network(
        module=partial(TextEncoder, hidden_states=hidden_states),
        spec=partial(text_encoder_spec, hidden_states=hidden_states),
        samples=text_encoder_samples,
        folders=("text_encoder",),
        batch=PROMPTS,
        renames=((r"^(?!text_model\.)", "text_model."),),
        skip=(POSITION_IDS,),
    )


TEXT_ENCODER_2 = Network(
    module=ProjectedTextEncoder,
    spec=projected_text_encoder_spec,
    samples=text_encoder_samples,
    folders=("text_encoder_2",),
    batch=PROMPTS,
    renames=((r"^(?!text_model\.|text_projection\.)", "text_model."),),
    skip=(POSITION_IDS,),
)
