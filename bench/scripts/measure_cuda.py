"""What an NVIDIA GPU makes of a model of `export_random`: STAGE FOLDER OUT.json [DEVICE].

FOLDER holds the checkpoint and the bundle that `export_random.py MODEL FOLDER fp16` wrote. Stages, each for a process
of its own on an idle GPU: components, kernels, beside, options, memory, loop, out_of_memory, picture. `measure_gpu.py`
runs them, and the suite for what is measured beside others.
"""

import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgediffusion.engines import ort, ort_cuda, ort_kernels
from edgediffusion.engines.base import Engine
from edgediffusion.engines.packed import File
from edgediffusion.engines.spec import Array, GraphSpec
from edgediffusion.runtime.bundle import Bundle
from edgediffusion.runtime.doctor import examine
from edgediffusion.runtime.golden import relative_errors
from edgediffusion.runtime.manifest import GraphRecord
from edgediffusion.runtime.pipeline import Pipeline
from edgediffusion.runtime.tokenizer import MAX_LENGTH

from ..benchmark import say
from ..cases.quality import psnr
from ..feeds import random_feeds
from ..gpu import memory_used
from ..pictures import COMMAND, PROMPT, write_checkpoint
from ..report import installed_versions, write_text
from ..workers.ours import CONSTANTS

CALLS, WARM_UP, INPUTS, STEPS = 60, 8, 10, 20
LARGE = 4096, 8192  # pixels; on the largest GPUs the first may fit


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


def bound_call(engine: Engine, feeds: list[dict[str, Array]]) -> Callable[[int], object]:
    """Calls `engine` with one of `feeds` by number, as the loop does it: what stays the same is bound."""
    constants = {key: value for key, value in feeds[0].items() if key in CONSTANTS}
    bound = engine.bind(constants)
    fresh = [{key: value for key, value in feed.items() if key not in constants} for feed in feeds]
    return lambda number: bound(fresh[number % len(fresh)])


def timed_calls(call: Callable[[int], object]) -> dict[str, float]:
    """Of `CALLS` calls after a warm-up."""
    return quantiles([timed(call, number) for number in range(WARM_UP + CALLS)][WARM_UP:])


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
    with opened_files() as files, Bundle.open(folder / "bundle", device=device) as bundle:
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
            yield {
                "name": name,
                "dialect": dialect_of(graph, files[-1]),
                "sizes": sizes,
                "ms": timed_calls(bound_call(engine, feeds)),
                "relative_errors": errors,
                "seconds_to_open": opened,
                "seconds_of_first_calls": calls,
                "changed": {key: dict(dialect.changed) for key, dialect in graph.dialects.items()},
                "placement": placement(folder, name, device, feeds[0]),
            }
            bundle.release(name)
            del module, engine
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """The names of the graphs that ONNX Runtime opens in the block, one that it refuses left out."""
    files, opened = list[str](), ort._open

    def noted(model: File, spec: GraphSpec, open_session: Any, runner: Any) -> Engine:
        engine = opened(model, spec, open_session, runner)
        files.append(model.name)
        return engine

    ort._open = noted
    try:
        yield files
    finally:
        ort._open = opened


def dialect_of(graph: GraphRecord, file: str) -> str | None:
    """The key of `graph.dialects` that `file` is, or None: the portable graph."""
    return next((key for key, dialect in graph.dialects.items() if Path(dialect.model).name == file), None)


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


def kernels(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """Each graph by the provider's operators and by our own: differences, times, and the kernels of one call."""
    with Bundle.open(folder / "bundle", device=device) as bundle:
        graphs = {n: g for n, g in bundle.manifest.graphs.items() if ort_kernels.DIALECT in g.dialects}
    for name, graph in graphs.items():
        outputs = {}
        for label, dialect in (("cuda", "cuda"), ("kernels", ort_kernels.DIALECT)):
            with Bundle.open(folder / "bundle", device=device) as bundle, warnings.catch_warnings():
                warnings.simplefilter("error", ort.Slower)  # nothing else in the place of our kernels
                only = replace(graph, dialects={dialect: graph.dialects[dialect]})
                bundle.manifest = replace(bundle.manifest, graphs={**bundle.manifest.graphs, name: only})
                opened = timed(bundle.engine, name)
                engine = bundle.engine(name)
                feeds = [random_feeds(graph.spec, sizes_of(bundle, name), seed) for seed in range(3)]
                first = [timed(engine, feeds[0]) for _ in range(3)]
                outputs[label] = [engine(feed) for feed in feeds]
                row = profiled(bound_call(engine, feeds), device)
            yield {"name": name, "label": label, "open_s": opened, "first": first} | row
        pairs = zip(outputs["kernels"], outputs["cuda"], strict=True)
        difference = [max(relative_errors(ours, theirs).values()) for ours, theirs in pairs]
        yield {"name": name, "difference": difference, "nan": bool(np.isinf(difference).any())}


def profiled_kernels(call: Callable[[int], object], device: str) -> list[tuple[str, int, float]]:
    """Of the kernels and copies of one call: name, launches, microseconds; those that take longest first."""
    import torch

    kind = torch.profiler.ProfilerActivity.CUDA if device == "cuda" else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        call(0)
    found = defaultdict[str, list[float]](list)
    for event in profile.events():
        if event.device_type.name == "CUDA":
            found[event.name].append(event.self_device_time_total)
    return sorted(((name, len(each), sum(each)) for name, each in found.items()), key=lambda row: -row[2])


def beside(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """The kernels of one call, ours and those of diffusers through torch.compile, for one picture and for eight."""
    from ..workers import diffusers as peer

    feeds = {}
    with Bundle.open(folder / "bundle", device=device) as bundle:
        for name in ("unet", "vae_decoder"):
            for pictures in (1, 8):
                sizes = sizes_of(bundle, name)
                sizes["batch"] *= pictures
                feeds[name, pictures] = [random_feeds(bundle.manifest.graphs[name].spec, sizes, k) for k in range(2)]
                call = bound_call(bundle.engine(name), feeds[name, pictures])
                yield {"who": "edgediffusion", "name": name, "pictures": pictures} | profiled(call, device)
        family = bundle.manifest.family
    gc.collect()
    os.environ.pop(ort_cuda.WORKSPACE[0], None)  # which is ours, and torch would follow it
    with tempfile.TemporaryDirectory() as out:
        source = str(write_checkpoint(folder / "bundle", Path(out), say))
        request = {"source": source, "dtype": "float16", "threads": 8, "device": device, "family": family}
        graphs = peer.load(request | {"compile": True})
    for (name, pictures), given in feeds.items():
        calls = [graphs[name](feed) for feed in given]
        yield {"who": "torch-compile", "name": name, "pictures": pictures} | profiled(in_turn(calls), device)


def in_turn(calls: Sequence[Callable[[], object]]) -> Callable[[int], object]:
    """Calls one of `calls` by number."""
    return lambda number: calls[number % len(calls)]()


def profiled(call: Callable[[int], object], device: str) -> dict[str, Any]:
    """How long a call takes, and its kernels."""
    times = timed_calls(call)
    table = profiled_kernels(call, device)
    return {
        **times,
        "kernels_us": sum(microseconds for _, _, microseconds in table),
        "launches": sum(launches for _, launches, _ in table),
        "top": table,
    }


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


def memory(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """Bytes of the GPU in use, beyond those before, as the engines of a picture are opened and run."""
    before = memory_used() or 0.0
    with Bundle.open(folder / "bundle", device=device) as bundle:
        for name in ("text_encoder", "unet", "vae_decoder"):
            engine = bundle.engine(name)
            opened = memory_used() or 0.0
            feeds = [random_feeds(bundle.manifest.graphs[name].spec, sizes_of(bundle, name), 0)]
            times = timed_calls(bound_call(engine, feeds))
            run = memory_used() or 0.0
            yield {"name": name, "bytes_opened": opened - before, "bytes_run": run - before, "ms": times}


def loop(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """What a step takes beyond the run of the session, in one process from cold to warm."""
    runs = list[float]()
    session = onnxruntime.InferenceSession
    method = "run" if device == "cpu" else "run_with_iobinding"
    run = getattr(session, method)

    def counted(*arguments: Any) -> Any:
        before = time.perf_counter()
        outputs = run(*arguments)
        runs.append(time.perf_counter() - before)
        return outputs

    setattr(session, method, counted)
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
    setattr(session, method, run)


def out_of_memory(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """A picture that does not fit: `generate` says so, and `run` draws the next job."""
    with tempfile.TemporaryDirectory() as out:
        few = ["--num-inference-steps", "1", "--guidance-scale", "1", "--force", "-o", f"{out}/large.png"]
        for size in LARGE:
            line = command(folder, device, "generate", PROMPT, "--size", f"{size}x{size}", *few)
            done = subprocess.run(line, capture_output=True, text=True)
            yield {"name": f"generate {size}", "status": done.returncode, "said": done.stderr.splitlines()}
            if done.returncode != 0:
                break
        assert done.returncode == 2
        assert "out of memory" in done.stderr
        settings = {"prompt": PROMPT, "num_inference_steps": 1, "guidance_scale": 1}
        jobs = [settings | {"width": size, "height": size}, settings]
        (Path(out) / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
        (Path(out) / "drawn").mkdir()
        line = command(folder, device, "run", f"{out}/jobs.jsonl", "--retries", "0", "-o", f"{out}/drawn")
        done = subprocess.run(line, capture_output=True, text=True)
        drawn = len(list(Path(out, "drawn").glob("*.png")))
        yield {"name": "run", "status": done.returncode, "drawn": drawn, "said": done.stderr.splitlines()}
        assert (done.returncode, drawn) == (1, 1)
        assert "out of memory" in done.stderr


def command(folder: Path, device: str, *arguments: str) -> list[str]:
    """Of ours, in a process of its own, on the bundle."""
    model = ["--bundle", str(folder / "bundle"), "--device", device]
    return [sys.executable, "-c", COMMAND, *arguments, *model]


def picture(folder: Path, device: str) -> Iterator[dict[str, Any]]:
    """The same picture by diffusers in float32, from the same noise."""
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    with tempfile.TemporaryDirectory() as out:
        flags = ["--num-inference-steps", str(STEPS), "--seed", "0", "--noise", "torch-cpu", "-o", f"{out}/ours.png"]
        subprocess.run(command(folder, device, "generate", PROMPT, *flags), check=True)
        ours = np.asarray(Image.open(f"{out}/ours.png"))
        kind: Any = DiffusionPipeline
        checkpoint = write_checkpoint(folder / "bundle", Path(out), say)
        pipeline: Any = kind.from_pretrained(checkpoint, safety_checker=None)
    pipeline = pipeline.to(device=device, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    theirs = np.asarray(pipeline(PROMPT, num_inference_steps=STEPS, generator=generator).images[0])
    yield {"name": "psnr", "dB": psnr(theirs, ours), "std": float(theirs.std())}


STAGES = {f.__name__: f for f in (components, kernels, beside, options, memory, loop, out_of_memory, picture)}


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
    stage, folder, out = sys.argv[1], Path(sys.argv[2]).absolute(), Path(sys.argv[3])
    device = sys.argv[4] if len(sys.argv) > 4 else "cuda"
    rows = []
    for row in STAGES[stage](folder, device):
        rows.append(row)
        say(f"{stage}: {json.dumps({k: v for k, v in row.items() if k not in ('placement', 'steps', 'top')})}")
    write_text(out, json.dumps({"stage": stage, "environment": environment(device), "rows": rows}, indent=1) + "\n")
