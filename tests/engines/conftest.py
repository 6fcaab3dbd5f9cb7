from __future__ import annotations

from edgediffusion.engines.profile import Profile
from edgediffusion.engines.recipe import Graph, Recipe, Target

SOURCE = Graph(component="unet", variant="", graph="a" * 64, weights="b" * 64)
HERE = Target(backend="tensorrt", version="10.13.2.6", gpu="NVIDIA H100", compute_capability="9.0", driver="580.95.05")
RECIPE = Recipe(
    source=SOURCE,
    target=HERE,
    precision="float16",
    profiles=(Profile.of({"batch": 2, "height": 64, "width": (64, 64, 96)}),),
    flags=("optimization_level=3",),
)
