"""BibTeX of what a model is made of: its loss, its architecture, its base model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

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
RESNET = """@inproceedings{zheng2021going,
  title = {Going Deeper With Directly-Trained Larger Spiking Neural Networks},
  author = {Zheng, Hanle and Wu, Yujie and Deng, Lei and Hu, Yifan and Li, Guoqi},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year = {2021}
}"""
SEW = """@inproceedings{fang2021deep,
  title = {Deep Residual Learning in Spiking Neural Networks},
  author = {Fang, Wei and Yu, Zhaofei and Chen, Yanqi and Huang, Tiejun and Masquelier, Timoth{\\'e}e and Tian, Yonghong},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2021}
}"""
QKFORMER = """@inproceedings{zhou2024qkformer,
  title = {{QKFormer}: Hierarchical Spiking Transformer using {Q-K} Attention},
  author = {Zhou, Chenlin and Zhang, Han and Zhou, Zhaokun and Yu, Liutao and Huang, Liwei and Fan, Xiaopeng and Yuan, Li and Ma, Zhengyu and Zhou, Huihui and Tian, Yonghong},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2024}
}"""
LOSSES = {"tmc": TMC, "tet": TET, "trt": TRT}
ARCHITECTURES = {
    "spiking_bert": BERT,
    "spiking_vgg": TET,
    "spiking_resnet": RESNET,
    "qkformer": QKFORMER,
}
"""Model type -> the source of its default; VGGSNN is of TET's authors."""
BASE_MODELS = {"minilm": MINILM}
"""Part of a base model's name -> its source."""


def citations(results: Mapping[str, Any], config: PreTrainedConfig) -> str:
    """BibTeX entries: the toolkit's TMC unless another loss was used, and the model's sources."""
    usual = None if getattr(config, "neuron", None) == "relu" else "tmc"
    loss = results.get("training", {}).get("temporal_loss", usual)
    found = [LOSSES[loss]] if loss in LOSSES else []
    source = SEW if getattr(config, "residual", None) == "sew" else ARCHITECTURES[config.model_type]
    if source not in found:
        found.append(source)
    base = results.get("base_model") or ""
    found += [entry for name, entry in BASE_MODELS.items() if re.search(name, base, re.I)]
    return "\n\n".join(found)
