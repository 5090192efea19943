"""Checks a folder that the wheel was installed into: every file of spikenlp/ is there, and it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main(site: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    listed = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "spikenlp"], cwd=root
    )
    missing = [f for f in listed.decode().splitlines() if not (site / f).is_file()]
    if missing:
        raise SystemExit(f"the wheel lacks {missing}: see package-data in pyproject.toml")
    if not list(site.glob("spikenlp-*.dist-info/licenses/LICENSE")):
        raise SystemExit("the wheel lacks LICENSE: see license-files in pyproject.toml")
    # -I: neither the checkout nor PYTHONPATH is on the path.
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import spikenlp, spikenlp.hub.card as c;"
        "assert spikenlp.__file__.startswith(sys.path[0]), spikenlp.__file__; assert c.TEMPLATE.read_text()"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
    print(f"the wheel is whole: {len(listed.splitlines())} files, LICENSE, and it imports")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
