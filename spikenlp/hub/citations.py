"""BibTeX of what a model is made of: its loss, its architecture, its base model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TMC = """@inproceedings{yan2025tmc,
  title = {Training High Performance Spiking Neural Network by Temporal Model Calibration},
  author = {Yan and others},
  booktitle = {International Conference on Machine Learning},
  year = {2025},
  url = {https://openreview.net/forum?id=l7ZmdeFyM1}
}"""
TET = """@inproceedings{deng2022tet,
  title = {Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting},
  author = {Deng, Shikuang and Li, Yuhang and Zhang, Shanghang and Gu, Shi},
  booktitle = {International Conference on Learning Representations},
  year = {2022}
}"""
TRT = """@article{trt2025,
  title = {Enhancing Generalization of Spiking Neural Networks Through Temporal Regularization},
  journal = {arXiv:2506.19256},
  year = {2025}
}"""
BERT = """@inproceedings{devlin2019bert,
  title = {{BERT}: Pre-training of Deep Bidirectional Transformers for Language Understanding},
  author = {Devlin, Jacob and Chang, Ming-Wei and Lee, Kenton and Toutanova, Kristina},
  booktitle = {NAACL-HLT},
  year = {2019}
}"""
MINILM = """@inproceedings{wang2020minilm,
  title = {{MiniLM}: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers},
  author = {Wang, Wenhui and Wei, Furu and Dong, Li and Bao, Hangbo and Yang, Nan and Zhou, Ming},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020}
}"""
LOSSES = {"tmc": TMC, "tet": TET, "trt": TRT}
BASE_MODELS = {"minilm": MINILM}
"""Part of a base model's name -> its source."""


def citations(results: Mapping[str, Any], model_type: str) -> str:
    """BibTeX entries: the toolkit's TMC unless another loss was used, and the model's sources."""
    loss = results.get("training", {}).get("temporal_loss", "tmc")
    found = [LOSSES[loss]] if loss in LOSSES else []
    if "bert" in model_type:
        found.append(BERT)
    base = results.get("base_model") or ""
    found += [entry for name, entry in BASE_MODELS.items() if re.search(name, base, re.I)]
    return "\n\n".join(found)
