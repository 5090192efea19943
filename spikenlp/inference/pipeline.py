"""Text classification that stops early.

    classify = pipeline("spiking-text-classification", model=path, early_exit=0.9)
    classify("a fine film")            [{"label": "positive", "score": 0.97, "steps": 2}]

Of the task "text-classification" transformers' own pipeline would hand `early_exit` to the tokenizer,
so this is a task of its own, or the same class by hand:
`pipeline("text-classification", model=path, pipeline_class=SpikingTextClassificationPipeline)`.
"""

from __future__ import annotations

from typing import Any, cast

from transformers import AutoModelForSequenceClassification, TextClassificationPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from spikenlp.inference.anytime import as_policy
from spikenlp.inference.anytime import early_exit as run_early_exit
from spikenlp.inference.policy import ExitPolicy
from spikenlp.inference.state import check_steps

TASK = "spiking-text-classification"


class SpikingTextClassificationPipeline(TextClassificationPipeline):
    """transformers' text-classification for a spiking classifier; each answer says its `steps`.

    Args:
        early_exit: a threshold in [0, 1], thresholds by step, an `ExitPolicy`, or True: the policy
            beside the checkpoint (`early_exit.json`). Also at each call. Without it, or with False, all T
            steps run.

    Others as in `TextClassificationPipeline`. Scores are those of the policy's temperature.

    Raises:
        ValueError: a model that is not spiking, does not run step by step (collapsed, or another
            architecture than "default") or has no confidence; a threshold outside [0, 1].
    """

    def __init__(self, **kwargs: Any):
        model = kwargs["model"]
        if not hasattr(model, "anytime"):
            raise ValueError(
                f"{type(model).__name__} has no time steps to stop between: use the task "
                "'text-classification'"
            )
        check_steps(model)
        super().__init__(**kwargs)

    def _sanitize_parameters(
        self, function_to_apply: Any = None, top_k: Any = "", early_exit: Any = None, **kwargs: Any
    ) -> Any:
        preprocess, forward, postprocess = super()._sanitize_parameters(
            function_to_apply, top_k, **kwargs
        )
        if early_exit is False:
            forward["policy"] = ExitPolicy()
        elif early_exit is not None:
            if early_exit is True:
                path = self.model.config._name_or_path
                if not path:
                    raise ValueError(
                        "early_exit=True reads the policy beside a checkpoint, and this model comes from none: "
                        "give a threshold or an ExitPolicy"
                    )
                early_exit = ExitPolicy.load(path, **cast(Any, self.model).hub_options)
            forward["policy"] = as_policy(early_exit)
        return preprocess, forward, postprocess

    def _forward(  # type: ignore[override]
        self, model_inputs: Any, policy: ExitPolicy | None = None
    ) -> Any:
        policy = policy or ExitPolicy()
        found = run_early_exit(cast(Any, self.model), model_inputs, policy)
        logits = found.logits.float()
        scale = [[policy.temperature(step)] for step in found.steps.tolist()]
        return {
            "logits": logits / logits.new_tensor(scale),
            "steps": found.steps,
        }

    def postprocess(self, model_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        answers = super().postprocess(model_outputs, *args, **kwargs)
        steps = int(model_outputs["steps"][0])
        for answer in answers if isinstance(answers, list) else [answers]:
            answer["steps"] = steps
        return answers


PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=SpikingTextClassificationPipeline,
    pt_model=AutoModelForSequenceClassification,
    type="text",
)
