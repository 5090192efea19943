"""What is installed from a source distribution works without the source tree."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
USE = """
import spikenlp, sys
from pathlib import Path
from spikenlp.metrics import metric_path
place = Path(spikenlp.__file__).parent
assert place == Path(sys.argv[1]) / "spikenlp", place
assert Path(metric_path("ece")).is_dir() and (place / "py.typed").is_file()
assert (place / "hub" / "model_card.md").is_file()
print(spikenlp.pretrained("sst2-small")("A fine film.").label)
"""


def run(*command, **options):
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, check=False, **options
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_wheel_built_from_the_sdist_holds_all_that_is_needed(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "spikenlp", source / "spikenlp")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    build = f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", build, cwd=source)
    (sdist,) = tmp_path.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    alone = ("--no-deps", "--no-build-isolation", "--no-index")
    # Unpacked here: pip takes a .tar.gz for a zip file whose last 64 KB happen to hold "PK\5\6".
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    run(*pip, "wheel", *alone, "--wheel-dir", tmp_path, unpacked)
    (wheel,) = tmp_path.glob("*.whl")
    run(*pip, "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"}
    site = str(tmp_path / "site")
    printed = run(sys.executable, "-c", USE, site, cwd=tmp_path, env=environment)
    assert printed.strip() == "positive"
    assert any((tmp_path / "site").glob("*.dist-info/licenses/LICENSE"))
