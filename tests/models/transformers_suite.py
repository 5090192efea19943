"""transformers' own common model suite, run on our classes.

The suite (`tests/test_modeling_common.py`, `tests/test_configuration_common.py`) is in no wheel,
only in the source archive. `load_suite` fetches the archive of the installed version with pip, once,
unpacks its `tests/` into `.cache/`, and imports it under a name of its own, so that it and our
`tests` do not meet. Three modules that the archive leaves out too are replaced by small stand-ins.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path

import transformers
from filelock import FileLock
from transformers.models.auto import modeling_auto

CACHE = Path(__file__).resolve().parents[2] / ".cache"
PACKAGE = "transformers_suite"
CONFIG_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "chunk_size_feed_forward": 5,
    "architectures": ["Model"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
    "dtype": "float16",
}
"""Fields that any config must accept and keep."""

STAND_INS = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": CONFIG_KWARGS},
}


class SuiteUnavailable(Exception):
    """The source archive could not be had; the message says why."""


def load_suite() -> types.SimpleNamespace:
    """`ModelTesterMixin`, `ConfigTester`, `ids_tensor` and `random_attention_mask` of the suite.

    Raises:
        SuiteUnavailable: it is not cached and pip cannot download it.
    """
    folder = _fetch()
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = package
        spec.loader.exec_module(package)
        for name, contents in STAND_INS.items():
            parent, _, child = name.partition(".")
            for module_name in (f"{PACKAGE}.{parent}", f"{PACKAGE}.{parent}.{child}"):
                sys.modules[module_name] = types.ModuleType(module_name)
            vars(sys.modules[f"{PACKAGE}.{name}"]).update(contents)
    modeling = importlib.import_module(f"{PACKAGE}.test_modeling_common")
    configuration = importlib.import_module(f"{PACKAGE}.test_configuration_common")
    return types.SimpleNamespace(
        ModelTesterMixin=modeling.ModelTesterMixin,
        ConfigTester=configuration.ConfigTester,
        ids_tensor=modeling.ids_tensor,
        random_attention_mask=modeling.random_attention_mask,
    )


def register_model_names(model_type: str, base: str, **heads: str) -> None:
    """Puts class names into modeling_auto's tables, by which the suite tells what to feed a class.

    >>> register_model_names("spiking_bert", "SpikingBertModel", MASKED_LM="SpikingBertForMaskedLM")
    """
    modeling_auto.MODEL_MAPPING_NAMES[model_type] = base
    for task, name in heads.items():
        getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")[model_type] = name


def _fetch() -> Path:
    folder = CACHE / f"transformers-{transformers.__version__}-tests"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "transformers-tests.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                archive = _download(Path(scratch))
                _unpack_tests(archive, Path(scratch) / "tests").rename(folder)
    return folder


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", "transformers", "--dest", str(folder)]
    command += [f"transformers=={transformers.__version__}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired as error:
        raise SuiteUnavailable(f"pip download took over {error.timeout} s") from error
    archives = list(folder.glob("transformers-*.tar.gz"))
    if done.returncode or not archives:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise SuiteUnavailable(f"pip cannot download transformers' source archive: {said[-1]}")
    return archives[0]


def _unpack_tests(archive: Path, folder: Path) -> Path:
    folder.mkdir()
    with tarfile.open(archive) as source:
        for member in source:
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and member.isfile():
                (folder / parts[2]).write_bytes(source.extractfile(member).read())
    (folder / "__init__.py").touch()
    return folder
