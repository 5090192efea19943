"""Adaptive calibration error (bins of equal mass), as an `evaluate` module."""

from typing import Any

import datasets
import evaluate

from spikenlp.metrics.calibration import adaptive_calibration_error


class AdaECE(evaluate.Metric):
    """`predictions`: probabilities [N, C]; `references`: class ids [N]; `bins` (15)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Nguyen & O'Connor, EMNLP 2015; Nixon et al., CVPR Workshops 2019",
            inputs_description=type(self).__doc__ or "",
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, *, predictions: Any, references: Any, bins: int = 15) -> dict[str, float]:
        return {"ada_ece": adaptive_calibration_error(predictions, references, bins=bins)}
