"""Packages of the extra `export`, imported late."""

from __future__ import annotations

import importlib
from typing import Any


def import_extra(*names: str) -> list[Any]:
    """Modules of the extra `export`. Raises ImportError naming it where one is missing."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise ImportError(
            f'this format needs {error.name}: pip install "spikenlp[export]"'
        ) from error
