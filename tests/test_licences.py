"""What the core depends on may be used by anyone, as far as installed metadata says."""

import importlib.util
from importlib.metadata import requires
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / ".ci" / "licences.py"
spec = importlib.util.spec_from_file_location("licences", PATH)
licences = importlib.util.module_from_spec(spec)
spec.loader.exec_module(licences)
CORE = licences.closure(requires("spikenlp"))


def test_the_core_dependencies_are_found_with_what_they_need():
    assert {"transformers", "torch", "datasets", "tokenizers", "pyarrow"} <= set(CORE)


@pytest.mark.parametrize("name", sorted(CORE))
def test_each_core_dependency_has_a_permissive_licence(name):
    assert licences.permitted(licences.licence_of(CORE[name]))


@pytest.mark.parametrize(
    "licence", ["GPL-3.0", "MIT AND GPL-3.0", "unknown", "GPL-2.0 OR AGPL-3.0"]
)
def test_other_licences_are_refused(licence):
    assert not licences.permitted(licence)
