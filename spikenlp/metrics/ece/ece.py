"""Expected calibration error over bins of equal width, as an `evaluate` module."""

from typing import Any

import datasets
import evaluate

from spikenlp.metrics.calibration import expected_calibration_error


class ECE(evaluate.Metric):
    """`predictions`: probabilities [N, C]; `references`: class ids [N]; `bins` (15)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Guo et al., On Calibration of Modern Neural Networks, ICML 2017",
            inputs_description=type(self).__doc__ or "",
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, *, predictions: Any, references: Any, bins: int = 15) -> dict[str, float]:
        return {"ece": expected_calibration_error(predictions, references, bins=bins)}
