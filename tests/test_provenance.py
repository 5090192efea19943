"""A record names the code that ran, not what the checkout holds when the run ends."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spikenlp.provenance import commit_of

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import subprocess, sys
from spikenlp.provenance import run_record
git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "later"], check=True)
print(run_record()["commit"])
"""


@pytest.mark.slow
def test_the_commit_is_that_of_the_start(tmp_path):
    shutil.copytree(ROOT / "spikenlp", tmp_path / "spikenlp")

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    git("init", "-q")
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    first = git("rev-parse", "HEAD").stdout.strip()
    command = [sys.executable, "-c", SCRIPT]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == first


def test_what_makes_a_checkout_modified(tmp_path):
    assert commit_of(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "code.py").write_text("1")
    for command in (["init"], ["add", "."], ["commit", "-m", "first"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    clean = commit_of(tmp_path)
    assert len(clean) == 40
    installed = tmp_path / ".venv" / "lib"
    installed.mkdir(parents=True)
    assert commit_of(installed) is None, "the commit of somebody else's project"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "record.json").write_text("{}")
    assert commit_of(tmp_path) == clean
    (tmp_path / "more.py").write_text("1")
    assert commit_of(tmp_path) == f"{clean} (modified)"
