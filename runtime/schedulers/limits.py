"""What some samplers do to a predicted x0 before they use it."""

from __future__ import annotations

import numpy as np

from ..arrays import F32
from .base import Limit
from .config import SchedulerConfig


def clip_limit(config: SchedulerConfig) -> Limit | None:
    """`clip_sample`: x0 stays within clip_sample_range."""
    if not config.clip_sample:
        return None
    limit = config.clip_sample_range
    return lambda x0: np.clip(x0, -limit, limit)


def threshold_limit(config: SchedulerConfig) -> Limit | None:
    """Dynamic thresholding (arXiv:2205.11487 sec. 2.3): each picture is clipped at a quantile, and scaled to 1."""
    if not config.thresholding:
        return None

    def limit(x0: F32) -> F32:
        axes = tuple(range(1, x0.ndim))
        s = np.quantile(np.abs(x0), config.dynamic_thresholding_ratio, axis=axes, keepdims=True)
        # torch.clamp takes the upper bound where the two cross.
        s = np.minimum(np.maximum(s, 1), config.sample_max_value).astype(x0.dtype)
        result: F32 = np.clip(x0, -s, s) / s
        return result

    return limit
