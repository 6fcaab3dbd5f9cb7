"""What an NVIDIA GPU makes of a model of `export_random`, measured beside torch: STAGE FOLDER OUT.json [DEVICE].

FOLDER holds the checkpoint and the bundle that `export_random.py MODEL FOLDER fp16` wrote. For memory, picture and
peers of sd15 it also holds what `edgediffusion export --to-diffusers FOLDER/bundle FOLDER/diffusers` makes of it.
Stages, each for a process of its own on an idle GPU: components, options, loop, start, memory, picture, peers.
"""

import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgediffusion.engines import ort, ort_cuda
from edgediffusion.engines.spec import Array
from edgediffusion.runtime.bundle import Bundle
from edgediffusion.runtime.doctor import examine
from edgediffusion.runtime.golden import relative_errors
from edgediffusion.runtime.pipeline import Pipeline
from edgediffusion.runtime.tokenizer import MAX_LENGTH

from ..cases.quality import psnr
from ..feeds import random_feeds
from ..gpu import watch_memory
from ..pictures import COMMAND
from ..report import installed_versions
from ..workers.ours import CONSTANTS

CALLS, WARM_UP, INPUTS, STEPS = 60, 8, 10, 20
PROMPT = "a red apple"
DIFFUSERS = """
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None, torch_dtype=torch.float16).to("cuda")
pipeline.set_progress_bar_config(disable=True)
pipeline(sys.argv[2], num_inference_steps=int(sys.argv[3])).images[0].save(sys.argv[4])
"""


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In ms."""
    return {
        "p50": 1e3 * statistics.median(seconds),
        "p90": 1e3 * float(np.quantile(seconds, 0.9)),
        "min": 1e3 * min(seconds),
    }


def timed(function: Callable[..., object], *arguments: Any, **keywords: Any) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    function(*arguments, **keywords)
    return time.perf_counter() - started


def sizes_of(bundle: Bundle, name: str) -> dict[str, int]:
    """The model's own size; a batch of two where there is guidance."""
    latent = bundle.config("unet/config.json")["sample_size"]
    size = 8 * latent if name == "vae_encoder" else latent
    return {"batch": 1 if name.startswith("vae") else 2, "height": size, "width": size, "sequence_length": MAX_LENGTH}


def poison(engine: Any) -> None:
    """NaN in all outputs that lie on the device."""
    for buffers in engine._run._held.buffers.values() if hasattr(engine._run, "_held") else ():
        for value in buffers.outputs.values():
            value.update_inplace(np.full(value.shape(), np.nan, np.float32))


def components(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """Each graph against torch in float32 on the same device, and how long a call takes."""
    import torch

    from edgediffusion.export.component import load_network
    from edgediffusion.export.families import FAMILIES
    from edgediffusion.export.sources import open_source

    source = open_source(folder / "checkpoint")
    with Bundle.open(folder / "bundle", device=device) as bundle:
        for name, graph in bundle.manifest.graphs.items():
            network = FAMILIES[bundle.manifest.family][name]
            part = next(source.parts[f] for f in network.folders if f in source.parts)
            module = load_network(part, network)[0].float().to(device)
            opened = timed(bundle.engine, name)
            engine = bundle.engine(name)
            sizes = sizes_of(bundle, name)
            feeds = [random_feeds(graph.spec, sizes, seed) for seed in range(INPUTS)]
            calls = [timed(engine, feeds[0]) for _ in range(3)]
            errors = []
            for feed in feeds:
                with torch.inference_mode(), torch.device(device):
                    output = module(**{key: torch.from_numpy(value).to(device) for key, value in feed.items()})
                output = output if isinstance(output, tuple) else (output,)
                wanted = {t.name: value.cpu().numpy() for t, value in zip(graph.spec.outputs, output, strict=True)}
                poison(engine)
                errors.append(max(relative_errors(engine(feed), wanted).values()))
            constants = {key: value for key, value in feeds[0].items() if key in CONSTANTS}
            bound = engine.bind(constants)
            fresh = [{key: value for key, value in feed.items() if key not in constants} for feed in feeds]
            seconds = [timed(bound, fresh[i % INPUTS]) for i in range(WARM_UP + CALLS)][WARM_UP:]
            yield {
                "name": name,
                "sizes": sizes,
                "ms": quantiles(seconds),
                "relative_errors": errors,
                "seconds_to_open": opened,
                "seconds_of_first_calls": calls,
                "changed": {key: dict(dialect.changed) for key, dialect in graph.dialects.items()},
                "placement": placement(folder, name, device, feeds[0]),
            }
            bundle.release(name)
            del module, engine, bound
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()


def placement(folder: Path, name: str, device: str, feeds: dict[str, Array]) -> dict[str, int]:
    """How many nodes run on which provider, from a profile of the session."""
    options, sessions = ort._options, list[Any]()
    session = onnxruntime.InferenceSession

    def profiled() -> onnxruntime.SessionOptions:
        result = options()
        result.enable_profiling = True
        result.profile_file_prefix = str(folder / "profile")
        return result

    def kept(*args: Any, **kwargs: Any) -> Any:
        sessions.append(session(*args, **kwargs))
        return sessions[-1]

    ort._options, onnxruntime.InferenceSession = profiled, kept
    try:
        with Bundle.open(folder / "bundle", device=device) as bundle:
            bundle.engine(name)(feeds)
            profile = Path(sessions[-1].end_profiling())
    finally:
        ort._options, onnxruntime.InferenceSession = options, session
    events = json.loads(profile.read_text())
    profile.unlink()
    nodes = [e["args"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return dict(Counter(f"{node.get('provider')}/{node['op_name']}" for node in nodes))


def options(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """The UNet with other options of the provider."""
    chosen = dict(ort_cuda.OPTIONS)
    for changes in (
        {},
        {"cudnn_conv_algo_search": "EXHAUSTIVE"},
        {"cudnn_conv_use_max_workspace": "0"},
        {"fuse_conv_bias": "1"},
        {"cudnn_conv_algo_search": "EXHAUSTIVE", "fuse_conv_bias": "1"},
        {"sdpa_kernel": "0"},
        {"sdpa_kernel": "1"},
        {"enable_cuda_graph": "0"},
    ):
        ort_cuda.OPTIONS.clear()
        ort_cuda.OPTIONS.update(chosen | changes)
        for name in ("unet", "vae_decoder"):
            with Bundle.open(folder / "bundle", device=device) as bundle:
                opened = timed(bundle.engine, name)
                engine = bundle.engine(name)
                feeds = random_feeds(bundle.manifest.graphs[name].spec, sizes_of(bundle, name), 0)
                seconds = [timed(engine, feeds) for _ in range(WARM_UP + CALLS)]
            yield {
                "name": f"{name} {changes or 'as chosen'}",
                "seconds_to_open": opened,
                "seconds_of_first_calls": seconds[:3],
                "ms": quantiles(seconds[WARM_UP:]),
            }
            gc.collect()
    ort_cuda.OPTIONS.clear()
    ort_cuda.OPTIONS.update(chosen)


def loop(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """What a step takes beyond the run of the session, in one process from cold to warm."""
    runs = list[float]()
    session = onnxruntime.InferenceSession
    run = session.run_with_iobinding

    def counted(self: Any, binding: Any, options: Any = None) -> None:
        runs.append(timed(run, self, binding, options))

    session.run_with_iobinding = counted
    started = time.perf_counter()
    with Pipeline.load(folder / "bundle", device=device, safety_checker=False) as pipeline:
        loaded = time.perf_counter() - started
        for attempt in range(3):
            runs.clear()
            planned, steps, latents = pipeline.steps(PROMPT, num_inference_steps=STEPS, seed=0), list[float](), None
            before = time.perf_counter()
            for step in planned:
                latents, now = step.latents, time.perf_counter()
                steps.append(now - before)
                before = now
            denoised = list(runs)
            assert latents is not None
            decode = timed(planned.images, latents)
            later = slice(-len(steps) + 3, None)
            yield {
                "name": f"picture {attempt + 1}",
                "seconds_to_load": loaded,
                "step_ms": quantiles(steps[3:]),
                "session_ms": quantiles(denoised[later]),
                "overhead_ms": 1e3 * (statistics.median(steps[3:]) - statistics.median(denoised[later])),
                "steps": steps,
                "seconds_to_decode": decode,
            }
    session.run_with_iobinding = run


def command(folder: Path, device: str, png: str, noise: str = "numpy") -> list[str]:
    """Draws a picture in a process of its own."""
    flags = ["--num-inference-steps", str(STEPS), "--seed", "0", "--device", device, "--noise", noise, "--force"]
    flags += ["-o", str(folder / png), "--bundle", str(folder / "bundle")]
    return [sys.executable, "-c", COMMAND, "generate", PROMPT, *flags]


def start(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """A process with the bundle in hand draws its first picture."""
    seconds = [timed(subprocess.run, command(folder, device, "ours.png"), check=True) for _ in range(3)]
    yield {"name": "edgediffusion generate", "seconds": seconds}


def memory(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """Peak device memory of a process that draws a picture, ours and that of diffusers in float16."""
    with watch_memory() as peak:
        subprocess.run(command(folder, device, "ours.png"), check=True)
    yield {"name": "edgediffusion generate", "peak_bytes": peak}
    with watch_memory() as peak:
        theirs = [str(folder / "diffusers"), PROMPT, str(STEPS), str(folder / "theirs.png")]
        seconds = timed(subprocess.run, [sys.executable, "-c", DIFFUSERS, *theirs], check=True)
    yield {"name": "diffusers, float16", "peak_bytes": peak, "seconds": seconds}


def picture(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """The same picture by diffusers in float32, from the same noise."""
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    subprocess.run(command(folder, device, "ours.png", "torch-cpu"), check=True)
    kind: Any = DiffusionPipeline
    pipeline: Any = kind.from_pretrained(folder / "diffusers", safety_checker=None)
    pipeline = pipeline.to(device=device, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(PROMPT, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0)).images[0]
    theirs, ours = np.asarray(drawn), np.asarray(Image.open(folder / "ours.png"))
    yield {"name": "psnr", "dB": psnr(theirs, ours), "std": float(theirs.std())}


def peers(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """diffusers' UNet and decoder in float16 with channels last: eager, and compiled as its documentation has it."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    kinds: tuple[tuple[Any, str], ...] = ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
    for compiled in (False, True):
        for kind, name in kinds:
            model = kind.from_pretrained(folder / "diffusers" / name, torch_dtype=torch.float16)
            model = model.to(device, memory_format=torch.channels_last).eval()
            latent = model.config.sample_size // (1 if name == "unet" else 8)
            sample = torch.randn(2 if name == "unet" else 1, 4, latent, latent, device=device, dtype=torch.float16)
            sample = sample.to(memory_format=torch.channels_last)
            context = torch.randn(2, 77, 768, device=device, dtype=torch.float16)
            call = model if name == "unet" else model.decode
            if compiled:
                call = torch.compile(call, mode="reduce-overhead", fullgraph=True)
            arguments = (sample, 500, context) if name == "unet" else (sample,)

            def once(call: Any = call, arguments: Any = arguments) -> None:
                with torch.inference_mode():
                    call(*arguments, return_dict=False)
                torch.cuda.synchronize()

            first = timed(once)
            seconds = [timed(once) for _ in range(WARM_UP + CALLS)][WARM_UP:]
            label = "torch.compile" if compiled else "eager"
            yield {"name": f"diffusers {name}, {label}", "ms": quantiles(seconds), "seconds_of_first_call": first}


STAGES = {f.__name__: f for f in (components, options, loop, start, memory, picture, peers)}


def environment(device: str) -> dict[str, Any]:
    """The machine, the GPU and the versions."""
    packages = ("onnxruntime", "onnxruntime-gpu", "torch", "diffusers", "transformers", "numpy")
    found: dict[str, Any] = dataclasses.asdict(examine()) | {"versions": installed_versions(packages)}
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
        found["cuda_of_onnxruntime"] = ort_cuda.built_for()
        found["options"] = ort_cuda.OPTIONS
    return found


if __name__ == "__main__":
    stage, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    device = sys.argv[4] if len(sys.argv) > 4 else "cuda"
    rows = []
    for row in STAGES[stage](folder, device):
        rows.append(row)
        sys.stderr.write(f"{stage}: {json.dumps({k: v for k, v in row.items() if k not in ('placement', 'steps')})}\n")
        content = {"stage": stage, "environment": environment(device), "rows": rows}
        out.write_text(json.dumps(content, indent=1) + "\n")
