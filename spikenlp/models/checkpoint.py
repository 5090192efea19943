"""What every spiking checkpoint carries beside its weights, whatever the architecture.

`config.json` holds the version of the format (`spikenlp_format`) and an `auto_map` that names a thin
module, which `save_pretrained` writes beside it. With `trust_remote_code=True` transformers' Auto
classes import that module, which imports spikenlp, which registers its models; where spikenlp is not
installed it says so. Without it, and without `import spikenlp`, transformers refuses the checkpoint.

A model family derives its config from `SpikingConfig`, puts `SpikingCheckpoint` before
`PreTrainedModel`, and is registered by `register`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from spikenlp.models.amplitudes import neurons_of

HUB_OPTIONS = ("revision", "subfolder", "cache_dir", "local_files_only", "force_download")
"""Options of `from_pretrained` that say where a model's files come from."""
FORMAT = 2
"""Version of the checkpoints that this release writes. Raise it, and add the step from the version
before to `MIGRATIONS`, whenever older weights or configs would be read wrongly."""


def _without_bursts(config: dict[str, Any]) -> dict[str, Any]:
    return {"burst": 1, **config} if config.get("model_type") == "spiking_bert" else config


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    0: lambda config: config,
    1: _without_bursts,
}
"""From version k to k + 1: takes the config as a dict and returns it, or raises ValueError saying why
such a checkpoint cannot be loaded any more. Version 0 is a config without `spikenlp_format`, which
differs from version 1 in nothing else; version 1 has no bursts."""
REMOTE_MODULE = "spikenlp_remote"
DEPTHS = ("num_hidden_layers", "depths")
"""Fields of configs that say how many layers there are."""

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
    never_left_out: ClassVar[tuple[str, ...]] = ("num_timesteps", "neuron")
    """Fields of every saved config that change results without changing the shape of any weight."""

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        found = super()._dict_from_json_file(json_file)
        if not isinstance(found, dict):
            raise ValueError(
                f"{json_file} is damaged: it holds no JSON object but a {type(found).__name__}"
            )
        return found

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        found = config_dict.get("model_type")
        if found != cls.model_type:
            raise ValueError(
                f"the checkpoint is of model_type {found!r}, not {cls.model_type!r}. A dense model is "
                "not loaded as a spiking one but converted: use from_dense(path, calibration=...)"
            )
        migrated = migrate(config_dict)
        lost = [name for name in cls.never_left_out if name not in migrated | kwargs]
        if lost and "spikenlp_format" in config_dict:
            raise ValueError(
                f"the checkpoint's config has no {', '.join(lost)}, which every saved one has: it is "
                "damaged, and a default would change what the model answers in silence"
            )
        dtype = migrated.get("dtype")
        if isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(
                f"the checkpoint's config has dtype={dtype!r}: expected one of torch's"
            )
        loaded = super().from_dict(migrated, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config.validate()  # with the fields of `kwargs`, which are set one by one
        return loaded

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


def check_fields(config_class: type[PreTrainedConfig], names: Iterable[str]) -> None:
    """Raises ValueError for a name that is no field of the config."""
    known = {*config_class().to_dict(), "num_labels", "attn_implementation"}
    if unknown := sorted(set(names) - known):
        raise ValueError(f"{config_class.__name__} has no field {', '.join(map(repr, unknown))}")


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

    hub_options: Mapping[str, Any] = MappingProxyType({})
    """Those of `HUB_OPTIONS` that the model was loaded with: other files beside its weights need them."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers', but weights that are found for a part of the model are refused.

        Heads and poolers may be new, unless the checkpoint says that it is of this class, and so may parameters
        that no neuron of the checkpoint has. Nothing in a checkpoint is executed: pickled weights are read
        with `weights_only`.

        Raises:
            ValueError: the checkpoint is dense, of a newer format, or of one too old; in int8 it lacks a head
                that this class has; its weights are damaged, incomplete, of more layers than its config says, outside its folder, or a pickle
                of more than tensors;
                `weights_only=False`.
            RuntimeError: weights of another shape than the config says.
            OSError: no config or no weights.
        """
        path = pretrained_model_name_or_path
        if not kwargs.get("weights_only", True):
            raise ValueError(
                "weights_only must be True, got False: a pickle of more than tensors runs code"
            )
        if path is not None and Path(path).is_dir():
            check_shards(Path(path) / kwargs.get("subfolder", ""))
        try:
            model, info = super().from_pretrained(  # type: ignore[misc]
                path, *args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"the weights in {path} are damaged or no safetensors: {error}"
            ) from error
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"the weights in {path} are a pickle of more than tensors, which was not executed. Do "
                "not load them in another way unless you trust who made them; ask for safetensors"
            ) from error
        replaced = {name for name, *_ in info["mismatched_keys"]}  # of another number of labels
        model.hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        check_complete(model, set(info["missing_keys"]) - replaced, path)
        check_rounded(
            {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}, path
        )
        more = of_layers_without_a_place(model, info["unexpected_keys"])
        if more and path is not None:
            on_file, _ = model.config.get_config_dict(path, **kwargs)
            if all(on_file.get(k) == getattr(model.config, k, None) for k in DEPTHS):
                raise ValueError(
                    f"{path} has weights of more layers than its config says, {len(more)} tensors: "
                    f"{', '.join(more[:2])} ... It is damaged; to load fewer layers on purpose, pass "
                    "their number (num_hidden_layers=... or depths=...)"
                )
        neurons = {
            f"{name}.{key}"
            for name, neuron in neurons_of(model)
            for key, _ in neuron.named_parameters()
        }
        missing = set(info["missing_keys"])
        others = {name for name, _ in model.named_parameters()} - neurons
        if neurons and neurons <= missing and not others <= missing:
            raise ValueError(
                f"{path} has no parameter of any neuron: its weights are those "
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

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'. Raises ValueError where weights are in int8."""
        if getattr(self, "is_quantized", False):
            raise ValueError(
                "the vocabulary of a model in int8 cannot be resized: resize the float model, and round that"
            )
        return super().resize_token_embeddings(*args, **kwargs)  # type: ignore[misc]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: `save_pretrained` writes the thin module, not the source of this class."""


def check_shards(folder: Path) -> None:
    """Raises ValueError where an index names weights that are not files of this folder."""
    for index in folder.glob("*.index.json"):
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
            wrong = sorted(n for n in names if Path(n).name != n or n in ("", ".."))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is no index of weights: {error!r}") from error
        if wrong:
            raise ValueError(f"{index} names weights outside its folder: {wrong[:3]}")


def check_complete(model: Any, missing: set[str], path: Any) -> None:
    """Raises ValueError where a checkpoint has a part of what it must have, the model's body, and of a model of
    its own class the head: the rest would be random."""
    is_base = getattr(model, model.base_model_prefix, model) is model
    if not is_base and type(model).__name__ in (model.config.architectures or ()):
        body = set(model.state_dict())
    else:
        prefix = "" if is_base else f"{model.base_model_prefix}."
        body = {
            name
            for name in model.state_dict()
            if name.startswith(prefix) and ".pooler." not in f".{name}"
        }
    neurons = {f"{n}.{k}" for n, neuron in neurons_of(model) for k in neuron.state_dict()} & body
    found = body - missing
    if not found or (neurons and not neurons & found):
        return  # other weights, or dense ones
    # A kind of parameter that no neuron of the checkpoint has is new, as after a change of `ternary`.
    kinds = {name.rsplit(".")[-1] for name in neurons & found}
    new = {name for name in neurons if name.rsplit(".")[-1] not in kinds}
    if lost := sorted((body & missing) - new):
        raise ValueError(
            f"{path} is incomplete: {len(lost)} of the {len(body)} tensors that it must have are "
            f"missing: {', '.join(lost[:4])}{' ...' if len(lost) > 4 else ''}"
        )


def check_rounded(new: set[str], path: Any) -> None:
    """Raises ValueError where a layer of a checkpoint in int8 would be new: integers are not drawn."""
    if lacking := sorted({n.rpartition(".")[0] for n in new if n.endswith("weight_int8")}):
        raise ValueError(
            f"{path} has weights in int8 and none for {', '.join(lacking)}, which cannot be made anew in "
            "int8: load the float checkpoint, train the head, and round that"
        )


def of_layers_without_a_place(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Of the weights that the model has no use for, those that differ from ones that it has in the
    number of a layer only."""

    def kind(name: str) -> str:
        return re.sub(r"\.\d+(?=\.)", ".N", name.removeprefix(f"{model.base_model_prefix}."))

    known = {kind(name) for name in model.state_dict()}
    return sorted(name for name in unexpected if kind(name) in known)


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
