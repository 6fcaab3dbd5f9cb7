from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.metadata import read_parameters
from edgediffusion.runtime.scoring import clip_scores, keep_best

PROMPTS = ["a red apple", "a blue car", "a rocket"]


def test_pictures_of_the_builtin_model_are_nearest_to_their_prompts(tmp_path: Path) -> None:
    with Pipeline.load() as pipeline:
        drawn = [pipeline(prompt, seed=0, num_inference_steps=8)[0] for prompt in PROMPTS]
        table = np.array([clip_scores(pipeline, prompt, [picture.image for picture in drawn]) for prompt in PROMPTS])
        assert table.argmax(axis=1).tolist() == [0, 1, 2]
        assert (np.abs(table) <= 1).all()
        apples = [dataclasses.replace(p, parameters=drawn[0].parameters) for p in drawn[::-1]]
        best = keep_best(pipeline, apples, 2)
        assert best[0].image is drawn[0].image
        assert [picture.parameters.clip_score for picture in best] == sorted(table[0].round(4))[:0:-1]
        weighed = clip_scores(pipeline, "[a blue:a:0.4] (red:1.3) [apple]", [apples[-1].image])
        assert weighed == clip_scores(pipeline, PROMPTS[0], [apples[-1].image])
        tall = Image.new("RGB", (128, 300), "white")
        tall.paste(drawn[0].image, (0, 86))
        # Of another size the middle is looked at: here the whole picture.
        assert clip_scores(pipeline, PROMPTS[0], [tall]) == pytest.approx([table[0, 0]], abs=1e-6)
        best[0].save(tmp_path / "a.webp")
    assert read_parameters(tmp_path / "a.webp") == best[0].parameters


def test_the_command_keeps_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = f"--seed 0 --num-inference-steps 3 --best-of 3 --num-images 2 -o {tmp_path}/a.png"
    assert main(["generate", "a red apple", *options.split()]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.split()] == ["a-1.png", "a-2.png"]
    first, second = (read_parameters(tmp_path / name) for name in ("a-1.png", "a-2.png"))
    assert (first.clip_score or 0) > (second.clip_score or 0) > -1
    assert "Score: " in first.to_text()


def test_encoders_that_were_not_trained_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pipeline.load() as pipeline:
        engine = pipeline.bundle.engine

        def narrow(name: str, variant: str | None = None) -> Any:
            if name != "text_encoder":
                return engine(name, variant)
            return lambda feeds: {"pooler_output": np.ones((1, 20), np.float32)}

        monkeypatch.setattr(pipeline.bundle, "engine", narrow)
        with pytest.raises(UsageError, match="image_encoder of width 256, text_encoder of width 20: they were not"):
            clip_scores(pipeline, "x", [Image.new("RGB", (128, 128))])
