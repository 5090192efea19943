"""transformers' Trainer with a temporal loss and metrics at every time step."""

from __future__ import annotations

from collections.abc import Callable, Sized
from contextlib import nullcontext
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import EvalPrediction
from transformers.trainer_pt_utils import get_parameter_names

from spikenlp.losses import trt_weight_penalty
from spikenlp.losses.spikes import count_spikes
from spikenlp.losses.temporal import IGNORE_INDEX
from spikenlp.metrics import calibration_by_timestep, scores_by_timestep
from spikenlp.models.modes import check_has_twin, collapsed, has_several_labels
from spikenlp.models.quantization import METHOD as INT8
from spikenlp.neurons import SpikingNeuron
from spikenlp.training.arguments import SpikingTrainingArguments
from spikenlp.training.checkpoints import ResumableTrainer
from spikenlp.training.loss_function import TemporalLossFunction, timestep_logits_of
from spikenlp.training.processes import check_sharding
from spikenlp.training.publishing import PublishingTrainer
from spikenlp.training.several_labels import label_distributions, label_logits
from spikenlp.training.spans import POSITIONS, TIMESTEP_LOGITS, SpansAsLabels, span_labels
from spikenlp.training.watchdogs import Watchdog

ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]


class SpikingTrainer(ResumableTrainer, PublishingTrainer):
    """Trains any model that returns `timestep_logits` [B, T, C] with SDT, TET, TMC or TRT, or with
    `args.collapsed` one without a time axis, the collapsed twin or a dense model, with its own loss.

    A model need not be of transformers: a network of another library may return {"logits": [B, C],
    "timestep_logits": [B, T, C]} for the columns of the batch.

    Its checkpoints, and what SIGTERM does, are those of `spikenlp.training.checkpoints`.

    Args:
        args: `SpikingTrainingArguments`; `label_smoothing_factor` smooths the cross entropy.
        compute_metrics: as for Trainer, on `predictions` = logits [N, C]. It is applied to the mean
            logits (`accuracy`) and to the running mean at each step (`accuracy_t1` ... `accuracy_tT`),
            beside which the loss of that running mean is reported (`loss_t1` ...), and for classes of
            whole sequences its calibration (`ece`, `ece_t1` ..., `ada_ece`, `nll`, `brier`,
            `confidence`), of several labels at once that of each being there or not.
        The rest as in transformers' Trainer. `predict` returns `predictions` = (logits [N, C],
        timestep_logits [N, T, C]); for tokens [N, L, C] and [N, T, L, C], -100 beyond a batch's length; of
        question answering those of starts and ends, [N, L] and [N, T, L].

    Raises:
        ValueError: an empty data set, a tokenizer with more tokens than the embedding has rows, a
            `compute_loss_func` (the loss is `args.temporal_loss`), a `preprocess_logits_for_metrics`,
            `args.collapsed` with a model over time that has no collapsed twin, or with labels that are floats
            [B, C], unless the model's config has problem_type="multi_label_classification"; labels that are
            neither classes nor distributions over them, labels out of range, logits that are not finite.
        RuntimeError: FSDP was asked for and is not there (`spikenlp.training.processes`).
    """

    args: SpikingTrainingArguments
    loss_function: ClassVar[type[TemporalLossFunction]] = TemporalLossFunction

    def __init__(
        self,
        model: nn.Module | None = None,
        args: SpikingTrainingArguments | None = None,
        *positional: Any,
        compute_metrics: ComputeMetrics | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, SpikingTrainingArguments):
            raise ValueError(f"args must be SpikingTrainingArguments, got {type(args).__name__}")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("the loss is args.temporal_loss: leave compute_loss_func to Trainer")
        if kwargs.get("preprocess_logits_for_metrics") is not None:
            raise ValueError(
                "metrics at each time step need the logits: leave preprocess_logits_for_metrics out"
            )
        metrics = TimestepMetrics(compute_metrics)
        kwargs["compute_metrics"] = lambda prediction: metrics(_with_steps_first(prediction))
        self._to_log: dict[str, tuple[torch.Tensor, int]] = {}
        quantization = getattr(config_of(model), "quantization_config", None)
        if getattr(quantization, "quant_method", None) == INT8:
            raise ValueError(
                "weights in int8 are not trained, with adapters neither: call model.dequantize() first"
            )
        super().__init__(model, args, *positional, **kwargs)
        config = config_of(self.model)
        self._several_labels = metrics.several_labels = has_several_labels(config)
        if args.collapsed:  # BERT takes loss keywords, and still returns a plain mean
            self.model_accepts_loss_kwargs = False
        else:
            self.compute_loss_func = self._temporal_loss()
        if not self.label_names:  # a forward that takes no labels
            self.label_names = ["labels"]
        self._of_spans = metrics.of_spans = set(POSITIONS) <= set(self.label_names)
        if self._of_spans and not args.collapsed:
            self.data_collator = SpansAsLabels(self.data_collator)
            self.label_names = ["labels"]
        check_sharding(self.accelerator.distributed_type)
        check_penalty(config, args)
        neurons = (m for m in cast(nn.Module, self.model).modules() if isinstance(m, SpikingNeuron))
        if args.spike_weight and next(neurons, None) is None:
            raise ValueError(
                f"spike_weight penalises the spikes of spikenlp.neurons, and {type(model).__name__} holds none"
            )
        if args.collapsed and config is None:
            raise ValueError(
                f"collapsed=True trains a model of transformers with its own loss, and {type(model).__name__} "
                "has no config: leave it out"
            )
        if args.collapsed:
            check_has_twin(config)
        self._check_targets(config)
        for name, dataset in (("train", self.train_dataset), ("eval", self.eval_dataset)):
            if isinstance(dataset, Sized) and len(dataset) == 0:
                raise ValueError(f"the {name} data set is empty")
        check_tokenizer_fits(cast(nn.Module, self.model), self.processing_class)

    def _check_targets(self, config: Any) -> None:
        args = self.args
        regression = getattr(config, "problem_type", None) == "regression"
        outputs = getattr(config, "num_labels", 1)
        if regression and outputs > 1 and not args.collapsed:
            raise ValueError(
                f"problem_type='regression' with {outputs} outputs has no temporal loss: make a model of one output "
                "each, or train with collapsed=True"
            )
        no_class = self._of_spans or self._several_labels or regression or outputs == 1
        if args.label_smoothing_factor and args.collapsed and no_class:
            raise ValueError(
                "label_smoothing_factor must be 0 with collapsed=True where no class is chosen (regression, spans, "
                f"several labels at once), got {args.label_smoothing_factor}"
            )

    @property
    def _watchdogs(self) -> list[Watchdog]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, Watchdog)]

    def _temporal_loss(self) -> TemporalLossFunction:
        options = self.args.temporal_loss_options()
        return self.loss_function(
            self.args.temporal_loss, several_labels=self._several_labels, **options
        )

    def _hp_search_setup(self, trial: Any) -> None:
        """Called at the start of each training, with a trial or None: either may find other options of the loss."""
        super()._hp_search_setup(trial)
        if not self.args.collapsed:
            self.compute_loss_func = self._temporal_loss()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            for watchdog in self._watchdogs:
                watchdog.close()

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        for watchdog in self._watchdogs:
            watchdog.before_micro_batch(self, inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        for watchdog in self._watchdogs:
            watchdog.after_micro_batch(self, inputs, loss)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        config = config_of(self.accelerator.unwrap_model(model))
        if self.args.collapsed and inputs.get("labels") is not None:
            if self._several_labels:
                label_distributions(inputs["labels"], config.num_labels)
            elif getattr(config, "problem_type", None) != "regression":
                check_classes(inputs["labels"])
        mode = collapsed(config) if self.args.collapsed else nullcontext()
        penalised = self.args.spike_weight > 0
        counting = count_spikes(model, inputs.get("attention_mask")) if penalised else nullcontext()
        with mode, counting as counted:
            loss, outputs = self.training_loss(model, inputs, num_items_in_batch)
        by_name = outputs if isinstance(outputs, dict) else {}
        if self.args.collapsed and by_name.get("timestep_logits") is not None:
            raise ValueError(
                f"collapsed=True: {type(model).__name__} still has a time axis, and no collapsed twin"
            )
        # Trainer divides what it computed without num_items_in_batch by the accumulated pieces.
        pieces = self.current_gradient_accumulation_steps if self._loss_is_scaled() else 1
        if counted is not None:
            spikes = counted.mean()
            self.add_to_log("spikes_per_neuron", spikes)
            excess = (spikes - self.args.spike_target).clamp_min(0)
            loss = loss + self.args.spike_weight * excess / pieces
        if self.args.temporal_loss == "trt" and not self.args.collapsed:
            loss = loss + _trt_penalty(model, timestep_logits_of(outputs).shape[1]) / pieces
        return (loss, outputs) if return_outputs else loss

    def training_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, Any]:
        """The loss of a batch before the penalties on spikes and weights, and the model's outputs."""
        computed: Any = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        return computed

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        if ignore_keys is None:
            ignored = getattr(config_of(self.model), "keys_to_ignore_at_inference", ())
            ignore_keys = [k for k in ignored if k not in ("timestep_logits", *TIMESTEP_LOGITS)]
        in_order = model.register_forward_hook(_predictions_first)
        try:
            found: tuple[Any, ...] = super().prediction_step(
                model, inputs, prediction_loss_only, ignore_keys
            )
        finally:
            in_order.remove()
        loss, logits, labels = found
        if (
            self._of_spans and logits is not None
        ):  # of two classes a token, [B, L, 2] and [B, T, L, 2]
            if isinstance(labels, tuple):
                labels = span_labels(labels, logits[0].shape[1])
            starts, ends = logits[::2], logits[1::2]
            logits = tuple(torch.stack(pair, -1) for pair in zip(starts, ends, strict=True))
            logits = logits if len(logits) > 1 else logits[0]
        return loss, _swapped(logits), labels

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        predictions = _swapped(output.predictions)
        if not self._of_spans or predictions is None:  # prediction_loss_only
            return output._replace(predictions=predictions)
        found: Any = output.label_ids
        labels = None if found is None else tuple(found.T)
        found_logits = predictions if isinstance(predictions, tuple) else (predictions,)
        starts_and_ends = tuple(x[..., i] for x in found_logits for i in (0, 1))
        return output._replace(predictions=starts_and_ends, label_ids=labels)

    def _loss_is_scaled(self) -> bool:
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        return self.compute_loss_func is not None

    def add_to_log(self, name: str, value: torch.Tensor) -> None:
        """Adds the mean of `value` since the last log, over all processes, to what the Trainer logs next."""
        total, count = self._to_log.get(name, (0, 0))
        self._to_log[name] = total + value.detach().float(), count + 1

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            for name, (total, count) in self._to_log.items():
                of_all: Any = self.accelerator.reduce(total / count, reduction="mean")
                logs[name] = of_all.item()
            self._to_log = {}
        super().log(logs, *args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        of_neurons = _neuron_parameter_names(model)
        return [n for n in super().get_decay_parameter_names(model) if n not in of_neurons]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        model = model or self.model
        assert model is not None
        names = _neuron_parameter_names(model)
        neuron_parameters = {
            id(p): p for n, p in model.named_parameters() if n in names and p.requires_grad
        }
        if neuron_parameters:
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in neuron_parameters]
            optimizer.add_param_group(
                {
                    "params": list(neuron_parameters.values()),
                    "lr": self.args.neuron_learning_rate,
                    "weight_decay": 0.0,
                }
            )
        return optimizer


class TimestepMetrics:
    """Applies `compute_metrics` to the running mean of the logits at each time step, the last of which is their
    mean, in float32 whatever the model computes with; for classes, calibration beside them.

    `of_spans`: of logits [N, L, 2] it gets starts and ends. `several_labels`: labels [N, C] are zeros and ones, each scored as two classes."""

    def __init__(self, compute_metrics: ComputeMetrics | None = None):
        self.compute_metrics = compute_metrics
        self.of_spans = self.several_labels = False

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """`predictions` are logits [N, C] and timestep_logits [N, T, C], or logits alone."""
        if isinstance(prediction.predictions, tuple):
            return self._by_step(prediction, prediction.predictions[1])
        metrics = self._by_step(prediction, prediction.predictions[:, None])
        return {k: v for k, v in metrics.items() if not k.endswith("_t1")}

    def _by_step(self, prediction: EvalPrediction, timestep_logits: np.ndarray) -> dict[str, float]:
        labels = cast(np.ndarray, prediction.label_ids)

        def metrics_of(logits: np.ndarray) -> dict[str, float]:
            if self.compute_metrics is None:
                return {}
            found: list[Any] = [logits, labels]
            if self.of_spans:
                found = [tuple(np.moveaxis(logits, -1, 0)), tuple(labels.T)]
            asked_for: Any = {"inputs": prediction.inputs, "losses": prediction.losses}
            return self.compute_metrics(EvalPrediction(*found, **asked_for))

        def loss_of(logits: np.ndarray) -> float:
            if self.several_labels:
                pairs = label_distributions(torch.from_numpy(labels), logits.shape[-1])
                return _loss(label_logits(torch.from_numpy(logits)).numpy(), pairs)
            return _loss(logits.swapaxes(1, 2) if self.of_spans else logits, labels)

        by_step = scores_by_timestep(
            lambda logits, labels: metrics_of(logits) | {"loss": loss_of(logits)},
            timestep_logits,
            labels,
        )
        last = f"_t{timestep_logits.shape[1]}"
        at_the_end = {k.removesuffix(last): v for k, v in by_step.items() if k.endswith(last)}
        metrics = {k: v for k, v in at_the_end.items() if k != "loss"} | by_step
        classified, classes = timestep_logits, labels
        if self.several_labels and np.isin(labels, (0, 1)).all():
            pairs = label_logits(torch.from_numpy(timestep_logits)).transpose(1, 2)
            classified, classes = pairs.flatten(0, 1).numpy(), labels.reshape(-1).astype(int)
        if np.ndim(classes) == 1 and classified.shape[-1] > 1:
            calibration = calibration_by_timestep(classified, classes)
            metrics |= {k: v for k, v in calibration.items() if k not in metrics}
        return metrics


def _with_steps_first(prediction: EvalPrediction) -> EvalPrediction:
    return EvalPrediction(
        _swapped(prediction.predictions),
        prediction.label_ids,
        inputs=prediction.inputs,
        losses=prediction.losses,
    )


def _swapped(predictions: Any) -> Any:
    """Logits of tokens [B, T, L, C] as [B, L, T, C], and back: Trainer concatenates batches of unlike
    lengths along dimension 1."""
    if isinstance(predictions, tuple):
        return tuple(map(_swapped, predictions))
    if np.ndim(predictions) != 4:
        return predictions
    return predictions.swapaxes(1, 2)


def _predictions_first(model: nn.Module, args: Any, outputs: Any) -> Any:
    """Outputs in the order in which `predictions` has them, whatever else a model gives and in whatever order."""
    if not isinstance(outputs, dict):
        return outputs
    steps = outputs.get("timestep_logits") is not None
    if steps and outputs.get("logits") is None:
        raise ValueError(
            f"{type(model).__name__} gives timestep_logits without logits: give their mean over the steps as "
            "logits"
        )
    first = ("loss", "logits", "timestep_logits") if steps else ()
    return {name: outputs[name] for name in (*first, *outputs) if name in outputs}


def config_of(model: Any) -> Any:
    """The config of a transformers model; None of another `nn.Module`."""
    return getattr(model, "config", None)


def check_classes(labels: torch.Tensor) -> None:
    """Raises ValueError where a model without a problem_type would take floats [B, C] for several labels at once."""
    if labels.dim() > 1 and labels.shape[-1] > 1 and labels.is_floating_point():
        raise ValueError(
            "collapsed=True trains with the model's own loss, which takes labels that are floats [B, C] for several "
            "labels at once. Of distributions over the classes: give the likeliest class, or leave collapsed out. Of "
            "several labels: make the model with problem_type='multi_label_classification'"
        )


def check_distributions(labels: torch.Tensor) -> None:
    """Raises ValueError where floats [B, C] are no distributions over the classes."""
    if not torch.isclose(labels.sum(-1), labels.new_ones(()), atol=1e-2).all():
        raise ValueError(
            "labels that are floats [B, C] must sum to 1 in each row, as distributions over the classes do; for "
            "samples that have several labels at once make the model with "
            "problem_type='multi_label_classification'"
        )


def check_penalty(config: Any, args: SpikingTrainingArguments) -> None:
    """Raises ValueError where spikes are penalised that have no gradient."""
    if args.spike_weight and getattr(config, "gradient", None) == "implicit":
        raise ValueError(
            "spike_weight penalises the spikes of each time step, which gradient='implicit' has no "
            "gradient of: set spike_weight=0 or gradient='bptt'"
        )


def check_tokenizer_fits(model: nn.Module, tokenizer: Any) -> None:
    """Raises ValueError where a tokenizer has ids that the model's embedding has no row for."""
    if not hasattr(tokenizer, "__len__") or not hasattr(model, "get_input_embeddings"):
        return
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows: load the "
            "tokenizer that belongs to the model, or call model.resize_token_embeddings("
            f"{len(tokenizer)})"
        )


def _loss(logits_array: Any, labels_array: Any) -> float:
    logits, labels = torch.from_numpy(logits_array), torch.from_numpy(np.asarray(labels_array))
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.squeeze(-1), labels.float().reshape(logits.shape[:-1])).item()
    if labels.shape == logits.shape:  # distributions over the classes
        check_distributions(labels)
        return F.cross_entropy(logits.flatten(0, -2), labels.float().flatten(0, -2)).item()
    return F.cross_entropy(
        logits.flatten(0, -2), labels.flatten().long(), ignore_index=IGNORE_INDEX
    ).item()


def _trt_penalty(model: nn.Module, steps: int) -> torch.Tensor:
    """TRT's penalty on the weight matrices."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return trt_weight_penalty(weights, steps)


def _neuron_parameter_names(model: nn.Module) -> set[str]:
    others = set(get_parameter_names(model, [SpikingNeuron], []))
    return {n for n, _ in model.named_parameters()} - others
