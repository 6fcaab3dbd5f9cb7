"""One picture, and as JSON when each stage ended (time.monotonic): BUNDLE PROMPT STEPS SEED PNG."""

import time

ends = {"interpreter": time.monotonic()}


def draw(bundle: str, prompt: str, steps: str, seed: str, png: str) -> list[float]:
    """Fill `ends`; return when each denoising step ended."""
    from edgediffusion.runtime import Pipeline

    ends["imports"] = time.monotonic()
    pipeline = Pipeline.load(bundle, safety_checker=False)  # as draw_with_diffusers.py
    ends["open the model"] = time.monotonic()
    run = pipeline.steps(prompt, num_inference_steps=int(steps), seed=int(seed))
    denoising = iter(run)
    ends["text encoder"] = time.monotonic()
    step_ends = []
    for step in denoising:
        latents = step.latents
        step_ends.append(time.monotonic())
    ends["denoising"] = step_ends[-1]
    picture = run.images(latents)[0]
    ends["VAE decoder"] = time.monotonic()
    picture.save(png)
    ends["PNG"] = time.monotonic()
    return step_ends


if __name__ == "__main__":
    import json
    import sys

    step_ends = draw(*sys.argv[1:])
    sys.stdout.write(json.dumps({"ends": ends, "step_ends": step_ends}))
