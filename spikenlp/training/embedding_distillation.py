"""Training of a sentence encoder from a dense one, on text without labels.

    loss = b hidden + c scores + d embedding + e similarity

hidden, scores: as in `spikenlp.training.distillation`. embedding, similarity: of the mean-pooled last hidden
state after each time step (`spikenlp.losses.distillation`), so that the encoder may be stopped at any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from spikenlp.embeddings import mean_pool, pooled_by_step
from spikenlp.losses.distillation import embedding_loss, similarity_loss
from spikenlp.training.distillation import DistillationArguments, DistillationTrainer


@dataclass
class EmbeddingDistillationArguments(DistillationArguments):
    """`DistillationArguments` and what is learned from the teacher's embeddings.

    Raises:
        ValueError: an option out of range (see the help of each field).
    """

    embedding_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the squared distance of embeddings, mean over time steps."},
    )
    similarity_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the divergence of similarities within a batch."},
    )
    similarity_temperature: float = field(
        default=0.05, metadata={"help": "Temperature of these similarities."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("embedding_weight", "similarity_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not self.similarity_temperature > 0:
            raise ValueError(
                f"similarity_temperature must be > 0, got {self.similarity_temperature}"
            )


class EmbeddingDistillationTrainer(DistillationTrainer):
    """`DistillationTrainer` of a base model, `SpikingBertModel`, whose mean-pooled embeddings learn from
    those of `teacher`, a dense `BertModel`; both have the same width."""

    args: EmbeddingDistillationArguments

    def __init__(self, model: Any, args: Any, *positional: Any, teacher: Any, **kwargs: Any):
        if not isinstance(args, EmbeddingDistillationArguments):
            raise ValueError(
                f"args must be EmbeddingDistillationArguments, got {type(args).__name__}"
            )
        for name, given in (("model", model), ("teacher", teacher)):
            if given.base_model is not given:
                raise ValueError(
                    f"{name} must be a base model without a head, got {type(given).__name__}"
                )
        width, teacher_width = model.config.hidden_size, teacher.config.hidden_size
        if width != teacher_width:
            raise ValueError(
                f"embeddings have {width} dimensions and the teacher's {teacher_width}: they must "
                "have as many"
            )
        super().__init__(model, args, *positional, teacher=teacher, **kwargs)

    def _cache_fits(self) -> bool:
        # The cache keeps hidden states, of which the last makes the embedding, where they are asked for.
        return self.args.hidden_weight > 0 and super()._cache_fits()

    def wanted_outputs(self) -> dict[str, Any]:
        return {**super().wanted_outputs(), "output_timesteps": not self.args.collapsed}

    def further_parts(
        self, outputs: Any, answers: Mapping[str, Any], mask: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        last = answers.get("last_hidden_state")
        target = mean_pool(answers["hidden_states"][-1] if last is None else last, mask)
        pooled, args = pooled_by_step(outputs, mask), self.args
        similarity = similarity_loss(pooled, target, temperature=args.similarity_temperature)
        return {
            "embedding": (args.embedding_weight, embedding_loss(pooled, target)),
            "similarity": (args.similarity_weight, similarity),
        }
