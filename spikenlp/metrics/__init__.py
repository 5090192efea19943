"""Metrics of tasks."""

from spikenlp.metrics.glue import GlueMetric, glue_metrics

__all__ = ["GlueMetric", "glue_metrics"]
