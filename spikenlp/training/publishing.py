"""A Trainer that publishes: its own model card, and nothing of its output folder that is private."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress

from spikenlp.hub.card import write_card
from spikenlp.hub.publish import RESUMABLE, hub_errors, stage, upload

CONFIG_FIELDS = ("num_timesteps", "neuron", "ternary", "burst", "nonlinearity")
"""Of the model's config, what a run's results record."""


class PublishingTrainer(Trainer):
    """transformers' Trainer whose card comes from `spikenlp.hub.card` and whose uploads are copies that
    hold public files only (`spikenlp.hub.publish`)."""

    @property
    def output_dir(self) -> Path:
        assert self.args.output_dir is not None  # TrainingArguments fills it in
        return Path(self.args.output_dir)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        with hub_errors(self.args.hub_model_id or self.output_dir.name):
            super().init_hf_repo(token=token, private=private)

    def create_model_card(  # type: ignore[override]
        self,
        *,
        model_name: str | None = None,
        license: str | None = None,
        tags: list[str] | None = None,
        finetuned_from: str | None = None,
        dataset: str | None = None,
        results: dict[str, Any] | None = None,
    ) -> None:
        """Writes README.md, `.eval_results/` and `plots/` into the output folder.

        Args:
            model_name: Hub id, or what to call the model; default: the output folder's name.
            license: identifier such as "mit", for a model that was made from another.
            finetuned_from: Hub id or name of the base model.
            dataset: Hub id of the training data.
            results: of the run, in the form of the recipes' results.json. Default: what this trainer
                knows, with the metrics of an evaluation of the weights as they are now.

        Raises:
            ValueError: results of another model; a network that is none of transformers.
        """
        if not self.is_world_process_zero():
            return
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "get_base_model"):  # with adapters of peft
            model = model.get_base_model()
        if not hasattr(model, "config"):
            raise ValueError(
                f"a model card is of a transformers model, which {type(model).__name__} is not: publish its weights "
                "by huggingface_hub.upload_folder"
            )
        results = training_results(self) if results is None else dict(results)
        if finetuned_from is not None:
            results["base_model"] = finetuned_from
        if dataset is not None:
            results["data"] = dataset
        write_card(
            self.output_dir,
            model,
            results,
            name=model_name or self.output_dir.name,
            licence=license,
            tags=tags,
        )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As Trainer's; `kwargs` are those of `create_model_card`.

        Raises:
            PermissionError: the Hub does not take the token.
            ValueError: a file would give away a secret or a path of this machine; no weights were saved.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**{"model_name": self.hub_model_id, **kwargs})
        self._finish_current_push()
        return self._upload(
            self.output_dir, commit_message, blocking, token=token, revision=revision
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy, running = self.args.hub_strategy, self.push_in_progress
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and running is not None and not running.is_done():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        at = f"step {self.state.global_step}"
        if self.args.save_strategy == SaveStrategy.EPOCH:
            at = f"epoch {int(self.state.epoch or 0)}"
        message = f"Training in progress, {at}"
        jobs = [self._upload(checkpoint_folder, message, blocking=False)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = strategy == HubStrategy.CHECKPOINT
            jobs.append(
                self._upload(
                    checkpoint_folder,
                    f"{message}, checkpoint",
                    blocking=False,
                    also=RESUMABLE,
                    path_in_repo="last-checkpoint" if last else Path(checkpoint_folder).name,
                )
            )
        if running is None or running.is_done():
            self.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type, assignment]
        else:
            running.jobs.extend(jobs)

    def _upload(
        self,
        folder: str | Path,
        message: str | None,
        blocking: bool,
        *,
        also: Sequence[str] = (),
        token: str | None = None,
        revision: str | None = None,
        path_in_repo: str | None = None,
    ) -> Any:
        assert self.hub_model_id is not None  # set by init_hf_repo
        copy = tempfile.mkdtemp()
        job = None
        try:
            stage(folder, copy, also)
            job = upload(
                copy,
                self.hub_model_id,
                token=token or self.args.hub_token,
                revision=revision or self.args.hub_revision,
                commit_message=message,
                path_in_repo=path_in_repo,
                run_as_future=not blocking,
            )
        finally:
            if blocking or job is None:
                shutil.rmtree(copy)
        if not blocking:
            job.add_done_callback(lambda _: shutil.rmtree(copy))
        return job


def training_results(trainer: Trainer) -> dict[str, Any]:
    """What a trainer knows of its run, in the form of results.json.

    Metrics are those of an evaluation at the step whose weights the model has; without one there are
    none.
    """
    state, args, model = (
        trainer.state,
        trainer.args,
        trainer.accelerator.unwrap_model(trainer.model),
    )
    step = state.global_step
    if args.load_best_model_at_end and state.best_global_step:
        step = state.best_global_step
    metrics: dict[str, Any] = {}
    for entry in state.log_history:
        if entry.get("step") == step:
            metrics |= {k[5:]: v for k, v in entry.items() if k.startswith("eval_")}
    results: dict[str, Any] = {"seed": args.seed}
    config = {k: getattr(model.config, k) for k in CONFIG_FIELDS if hasattr(model.config, k)}
    results["config"] = config
    if state.global_step:
        collapsed = getattr(args, "collapsed", False)
        loss = "none (collapsed)" if collapsed else getattr(args, "temporal_loss", "of the model")
        options = getattr(args, "temporal_loss_options", dict)
        results["training"] = {
            "steps": state.global_step,
            "temporal_loss": loss,
            **({} if collapsed else options()),
        }
    source = model.config._name_or_path
    if source:
        results["base_model"] = Path(source).name if Path(source).exists() else source
    if metrics:
        results["spiking"] = metrics
    return results
