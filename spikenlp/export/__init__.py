"""Spiking models for other runtimes: a torch.export program, ONNX, NIR; each checked before it is kept."""

from spikenlp.export.check import Agreement
from spikenlp.export.export import FORMATS, export

__all__ = ["FORMATS", "Agreement", "export"]
