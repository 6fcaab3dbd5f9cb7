"""Bytes flipped, bytes lost, files cut: refused with one line, or without any effect."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgediffusion.engines.errors import BundleError, EdgeDiffusionError
from edgediffusion.runtime import Bundle, Pipeline
from edgediffusion.runtime.golden import verify
from edgediffusion.runtime.packs.read import Pack, open_pack
from edgediffusion.runtime.packs.write import pack_bundle
from edgediffusion.runtime.pipeline import BUILTIN

Damage = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def overwrite(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    length = min(chance.choice((1, 16, 512, 4096)), len(content) - start)
    return content[:start] + chance.randbytes(length) + content[start + length :]


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def lose(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    return content[:start] + content[start + chance.randint(1, 4096) :]


DAMAGES: tuple[Damage, ...] = (flip, overwrite, cut, lose)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Changed in one of these ways."""
    while (result := chance.choice(DAMAGES)(content, chance)) == content:
        pass
    return result


def one_line(error: Exception) -> None:
    assert "\n" not in str(error), str(error)


def files(pack: Pack) -> dict[str, bytes]:
    return {name: bytes(view) for name, view in pack.root.members.items()}


def try_packs(path: Path, seeds: Iterator[int]) -> Counter[str]:
    whole, tried = path.read_bytes(), Counter[str]()
    wanted = files(open_pack(path))
    broken = path.with_name("broken.edz")
    for seed in seeds:
        broken.write_bytes(damaged(whole, random.Random(seed)))
        try:
            pack = open_pack(broken)
            pack.check()
        except BundleError as error:
            one_line(error)
            tried["refused"] += 1
        else:
            assert files(pack) == wanted, seed
            tried["harmless"] += 1
    return tried


def test_packs_that_were_damaged(pack_path: Path) -> None:
    """In the small one most bytes are headers, records and padding."""
    tried = try_packs(pack_path, iter(range(150)))
    assert tried["refused"] > 75
    assert tried["harmless"] > 0


@pytest.mark.slow
def test_a_thousand_damages_of_the_built_in_model_as_a_pack(tmp_path: Path) -> None:
    pack_bundle(BUILTIN, tmp_path / "model.edz")
    tried = try_packs(tmp_path / "model.edz", iter(range(1000)))
    assert tried["refused"] > 900


def draw(pipeline: Pipeline) -> bytes:
    return pipeline("a red apple", seed=0, num_inference_steps=1)[0].image.tobytes()


def try_bundles(bundle: Path, seeds: Iterator[int], look: Callable[[Path], bytes]) -> Counter[str]:
    """One file of the bundle damaged at a time, each as often as another; what still opens gives what it gave."""
    names = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    wanted, tried = look(bundle), Counter[str]()
    for seed in seeds:
        chance = random.Random(seed)
        path = bundle / chance.choice(names)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, chance))
        try:
            assert look(bundle) == wanted, (seed, path)
            tried["harmless"] += 1
        except EdgeDiffusionError as error:
            one_line(error)
            tried["refused"] += 1
        finally:
            path.write_bytes(whole)
    return tried


@pytest.mark.usefixtures("opened")
def test_bundles_that_were_damaged(bundle_path: Path) -> None:
    def look(folder: Path) -> bytes:
        with Pipeline.load(folder) as pipeline:
            return draw(pipeline)

    tried = try_bundles(bundle_path, iter(range(60)), look)
    assert tried["refused"] > 50


@pytest.mark.slow
def test_a_thousand_damages_of_the_built_in_model_as_a_folder(tmp_path: Path) -> None:
    """With ONNX Runtime. What drawing does not open, the encoders, `verify` does."""
    shutil.copytree(BUILTIN, tmp_path / "bundle")

    def look(folder: Path) -> bytes:
        with Bundle.open(folder) as bundle:
            for name in bundle.manifest.graphs:
                bundle.engine(name)
        with Pipeline.load(folder) as pipeline:
            return draw(pipeline)

    tried = try_bundles(tmp_path / "bundle", iter(range(1000)), look)
    assert tried["refused"] > 900
    with Bundle.open(tmp_path / "bundle") as bundle:
        assert all(check.passed for check in verify(bundle))
