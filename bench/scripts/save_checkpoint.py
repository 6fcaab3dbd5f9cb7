"""Write a bundle as a checkpoint that diffusers opens by itself, with what text to image needs: BUNDLE CHECKPOINT."""

import sys
from pathlib import Path

from edgediffusion.export.reference import load_pipeline

bundle, checkpoint = map(Path, sys.argv[1:])
pipeline = load_pipeline(bundle)
pipeline.register_modules(image_encoder=None, feature_extractor=None)
pipeline.save_pretrained(checkpoint)
