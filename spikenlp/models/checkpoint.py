"""What every spiking checkpoint carries beside its weights, whatever the architecture.

`config.json` holds the version of the format (`spikenlp_format`) and an `auto_map` that names a thin
module, which `save_pretrained` writes beside it. With `trust_remote_code=True` transformers' Auto
classes import that module, which imports spikenlp, which registers its models; where spikenlp is not
installed it says so. Without it, and without `import spikenlp`, transformers refuses the checkpoint.

A model family derives its config from `SpikingConfig`, puts `SpikingCheckpoint` before
`PreTrainedModel`, and is registered by `register`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from spikenlp.neurons import SpikingNeuron

FORMAT = 1
"""Version of the checkpoints that this release writes. Raise it, and add the step from the version
before to `MIGRATIONS`, whenever older weights or configs would be read wrongly."""
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {0: lambda config: config}
"""From version k to k + 1: takes the config as a dict and returns it, or raises ValueError saying why
such a checkpoint cannot be loaded any more. Version 0 is a config without `spikenlp_format`, which
differs from version 1 in nothing else."""
REMOTE_MODULE = "spikenlp_remote"

REMOTE_CODE = '''"""This checkpoint is a model of the package spikenlp, which transformers finds through this file."""

try:
    from spikenlp import (
        {names},
    )
except ImportError as error:
    raise ImportError(
        "This checkpoint is a spiking model of the package spikenlp, which is not installed or is too "
        f"old for it ({{error}}). Run: pip install --upgrade spikenlp"
    ) from error
'''


@strict
class SpikingConfig(PreTrainedConfig):
    """The base of every spiking model's config.

    Args:
        spikenlp_format: version of the checkpoint's format; always that of this release once loaded.

    Raises:
        ValueError: a checkpoint of another model type, of a newer format, or of an older one that
            cannot be migrated.
    """

    spikenlp_format: int = FORMAT
    auto_classes: ClassVar[dict[str, str]] = {}
    """Auto class -> model class, set by `register`."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        found = config_dict.get("model_type")
        if found != cls.model_type:
            raise ValueError(
                f"the checkpoint is of model_type {found!r}, not {cls.model_type!r}. A dense model is "
                "not loaded as a spiking one but converted: use from_dense(path, calibration=...)"
            )
        return super().from_dict(migrate(config_dict), **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        names = type(self).__dict__.get("auto_classes")
        if names is not None:
            self.auto_map = {
                "AutoConfig": f"{REMOTE_MODULE}.{type(self).__name__}",
                **{auto: f"{REMOTE_MODULE}.{model}" for auto, model in names.items()},
            }
            code = REMOTE_CODE.format(
                names=",\n        ".join(sorted({type(self).__name__, *names.values()}))
            )
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            (Path(save_directory) / f"{REMOTE_MODULE}.py").write_text(code)
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: `save_pretrained` writes the thin module, not the source of this class."""


def migrate(config_dict: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's config, as written by any release, in the form of this one."""
    version = config_dict.get("spikenlp_format", 0)
    if not isinstance(version, int) or version < 0:
        raise ValueError(f"spikenlp_format must be an integer >= 0, got {version!r}")
    if version > FORMAT:
        raise ValueError(
            f"the checkpoint has format {version}, this spikenlp reads up to format {FORMAT}: run "
            "pip install --upgrade spikenlp"
        )
    config_dict = dict(config_dict)
    for step in range(version, FORMAT):
        try:
            config_dict = MIGRATIONS[step](config_dict)
        except ValueError as error:
            raise ValueError(
                f"a checkpoint of format {step} cannot be loaded by this spikenlp, which writes format "
                f"{FORMAT}: {error}"
            ) from error
    return {**config_dict, "spikenlp_format": FORMAT}


class SpikingCheckpoint:
    """Loading and pushing of spiking models: a mixin, to stand before `PreTrainedModel`."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers', but weights that are found for all but the neurons are refused.

        Raises:
            ValueError: the checkpoint is dense, of a newer format, or of one too old.
        """
        model, info = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        neurons = {
            f"{module}.{parameter}"
            for module, neuron in model.named_modules()
            if isinstance(neuron, SpikingNeuron)
            for parameter, _ in neuron.named_parameters()
        }
        missing = set(info["missing_keys"])
        others = {name for name, _ in model.named_parameters()} - neurons
        if neurons and neurons <= missing and not others <= missing:
            raise ValueError(
                f"{pretrained_model_name_or_path} has no parameter of any neuron: its weights are those "
                f"of a dense model. Convert it with {cls.__name__}.from_dense(path, calibration=...)"
            )
        return (model, info) if output_loading_info else model

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """As transformers', with a model card that tells what the model is made of.

        A card that the repository has already is kept. Where the run's results belong into the card,
        push from the trainer (`SpikingTrainer.push_to_hub`).

        Args:
            repo_id: "user/name"; it is made if it does not exist.
            options: commit_message, commit_description, private, token, revision (a branch), create_pr,
                max_shard_size, tags.

        Returns:
            huggingface_hub's CommitInfo.

        Raises:
            PermissionError: the Hub does not take the token.
        """
        from spikenlp.hub.publish import push_model

        return push_model(self, repo_id, **options)  # type: ignore[arg-type]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: `save_pretrained` writes the thin module, not the source of this class."""


def register(
    config_class: type[SpikingConfig], model_classes: Mapping[Any, type[PreTrainedModel]]
) -> None:
    """Makes a family known to the Auto classes, here and in the checkpoints that it writes.

    Args:
        config_class: its `model_type` is the name that config.json bears.
        model_classes: Auto class -> model class; all of them, and the config, are names of `spikenlp`.
    """
    AutoConfig.register(config_class.model_type, config_class)
    for auto, model_class in model_classes.items():
        auto.register(config_class, model_class)
    config_class.auto_classes = {a.__name__: m.__name__ for a, m in model_classes.items()}
