"""Readers on damaged files: a valid result or ValueError. benchmarks/fuzz.py does it in thousands."""

import pytest

from tests.data import fuzzing
from tests.data.fuzzing import Target, fuzz, targets


@pytest.mark.parametrize("name", targets())
def test_the_files_that_are_mutated_are_valid(name, tmp_path):
    target = targets()[name]
    for data in target.files:
        target.read(data, tmp_path)


@pytest.mark.parametrize("name", targets())
def test_damaged_files_give_a_valid_result_or_a_value_error(name):
    found = fuzz(targets()[name], 120, seed=1)
    assert found.leaks == []
    assert found.mutations == 120 == found.valid + sum(found.outcomes.values())
    assert found.outcomes["ValueError"] > 10


@pytest.mark.parametrize("error", [IndexError, UnicodeDecodeError, MemoryError])
def test_any_other_error_would_be_reported(error):
    def read(data, folder):
        if len(data) < 4:
            raise error("utf-8", b"", 0, 1, "") if error is UnicodeDecodeError else error("x")

    found = fuzz(Target([b"abcd"], read), 50)
    assert found.leaks
    assert found.outcomes == {error.__name__: len(found.leaks)}


def test_a_reader_that_hangs_would_be_reported(monkeypatch):
    def read(data, folder):
        while True:
            pass

    monkeypatch.setattr(fuzzing, "SECONDS", 0.05)
    assert fuzz(Target([b"a"], read), 1).outcomes == {"Hangs": 1}


def test_a_mutation_depends_on_its_number_and_the_seed_alone():
    seen = []
    target = Target([bytes(range(100)), b"abc"], lambda data, folder: seen.append(data))
    fuzz(target, 20)
    fuzz(target, 20)
    assert seen[:20] == seen[20:]
    assert len(set(seen)) > 15
