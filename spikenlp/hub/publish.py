"""From a folder on disk to a repository on the Hub: only what belongs there, without anything private.

What is uploaded is a copy. It holds the files that `PUBLIC` names and nothing else: transformers'
`training_args.bin`, for one, is a pickle with the output folder and the token in it.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import PreTrainedModel

from spikenlp.hub.card import write_card
from spikenlp.models.checkpoint import REMOTE_MODULE
from spikenlp.privacy import find_leaks, scrub

PUBLIC = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    f"{REMOTE_MODULE}.py",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "early_exit.json",
    "results.json",
    "arguments.yaml",
    "trainer_state.json",
    "README.md",
    "LICENSE",
    ".eval_results/*.yaml",
    "plots/*.png",
)
API = HfApi()
"""One for all uploads: those in the background wait for each other."""
RESUMABLE = (
    *("optimizer.pt", "scheduler.pt", "scaler.pt"),
    *("rng_state*.pth", "order_rng_state_*.pth"),
)
"""What a run needs to go on, for Trainer's hub strategies that upload checkpoints."""
RECORDS = ("results.json", "arguments.yaml", "trainer_state.json")
"""What a run wrote about itself; it is scrubbed."""


def stage(source: str | Path, target: str | Path, also: Sequence[str] = ()) -> list[str]:
    """Copies the public files of `source` to `target`, records scrubbed; returns their names.

    Args:
        also: patterns of further files.

    Raises:
        ValueError: no weights among the public files, pickled ones are none; a file that is copied as it is still
            holds something private.
    """
    source, target = Path(source), Path(target)
    names = sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file())
    taken = [n for n in names if any(_matches(n, pattern) for pattern in (*PUBLIC, *also))]
    if not any(name.endswith(".safetensors") for name in taken):
        raise ValueError(
            f"{source} has no weights in .safetensors: load the model with from_pretrained and write it with "
            "save_pretrained"
        )
    for name in taken:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name in RECORDS:
            (target / name).write_text(_scrubbed(source / name))
        else:
            shutil.copyfile(source / name, target / name)
    check_private(target)
    return taken


def check_private(folder: str | Path) -> None:
    """Raises ValueError if a file of `folder` holds a path of this machine, a token or a secret."""
    if leaks := find_leaks(folder):
        raise ValueError(f"not published, for what its files would give away: {'; '.join(leaks)}")


def upload(
    folder: str | Path, repo_id: str, *, token: str | bool | None = None, **options: Any
) -> Any:
    """`HfApi.upload_folder`, after `check_private` and with errors that say what to do.

    Files that the Hub has already are not sent again: a push that broke off is completed by another.

    Raises:
        ValueError: something private in the folder.
        PermissionError: the Hub does not take the token.
        ConnectionError: the upload broke off.
    """
    check_private(folder)
    with hub_errors(repo_id):
        return API.upload_folder(repo_id=repo_id, folder_path=str(folder), token=token, **options)


def push_model(
    model: PreTrainedModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
) -> Any:
    """See `SpikingCheckpoint.push_to_hub`."""
    with hub_errors(repo_id), tempfile.TemporaryDirectory() as folder:
        repo_id = API.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            API.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if not API.file_exists(repo_id, "README.md", revision=revision, token=token):
            write_card(folder, model, name=repo_id, tags=tags)
        return upload(
            folder,
            repo_id,
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
        )


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turns the Hub's refusals into a PermissionError and broken uploads into a ConnectionError, which
    say what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status not in (401, 403):
            raise
        raise PermissionError(
            f"the Hub did not let this token write to {repo_id} (HTTP {status}): log in with `hf auth "
            "login`, or pass token=..., with a token that may write there"
        ) from error
    except RuntimeError as error:
        if error.__cause__ is None:
            raise
        raise ConnectionError(
            f"the upload to {repo_id} broke off: {error} Push again: files that have arrived are not "
            "sent a second time"
        ) from error


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _scrubbed(file: Path) -> str:
    if file.suffix == ".yaml":
        return yaml.safe_dump(scrub(yaml.safe_load(file.read_text())))
    return json.dumps(scrub(json.loads(file.read_text())), indent=1) + "\n"
