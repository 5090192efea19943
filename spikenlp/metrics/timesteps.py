"""Any metric of logits, at every time step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spikenlp.metrics.calibration import Array, to_numpy


def scores_by_timestep(
    metric: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    timestep_logits: Array,
    labels: Array,
) -> dict[str, float]:
    """`metric` of the mean of the logits of steps 1 ... t, which is the answer after t steps.

    Args:
        metric: scores by name of float32 logits [B, ...] and labels, such as `glue_metrics("qqp")`.
        timestep_logits: [B, T, ...] of any floating dtype.
        labels: as `metric` takes them.

    Returns:
        For a score s, `s_t1` ... `s_tT`.

    Raises:
        ValueError: logits without a time axis, and what `metric` raises.

    >>> z = np.array([[[1.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [0.0, 1.0]]])
    >>> scores_by_timestep(glue_metrics("sst2"), z, np.array([1, 1]))
    {'accuracy_t1': 0.5, 'accuracy_t2': 1.0}
    """
    z, y = to_numpy(timestep_logits).astype(np.float32), to_numpy(labels)
    if z.ndim < 3:
        raise ValueError(f"timestep_logits must have shape [B, T, ..., C], got {z.shape}")
    steps = np.arange(1, z.shape[1] + 1, dtype=np.float32).reshape(-1, *[1] * (z.ndim - 2))
    running_mean = z.cumsum(1) / steps
    return {
        f"{name}_t{t + 1}": score
        for t in range(z.shape[1])
        for name, score in metric(running_mean[:, t], y).items()
    }
