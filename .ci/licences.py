"""The licences of what spikenlp depends on, from the metadata of what is installed.

Walks the dependencies and the extras of pyproject.toml, transitively, as far as they are installed; writes
docs/licences.md, and fails on a licence that is not in ALLOWED.

    python .ci/licences.py
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LIST = Path(__file__).resolve().parents[1] / "docs" / "licences.md"

# SPDX identifiers. MPL-2.0 asks that changes to its own files stay under it, and nothing of what uses them.
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "MIT",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
    "Zlib",
}

# Extras that the package never imports: another licence there binds only who installs them.
NEVER_IMPORTED = {"tonic": "GPL-3.0"}

# What older metadata calls them. A classifier says only "BSD": which of its clauses it does not say.
SPDX = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd license": "BSD",
    "freebsd": "BSD-2-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
}


def licence_of(metadata: Distribution) -> str:
    """The licence that a distribution declares, as an SPDX expression where it can be told.

    `License-Expression` comes first, then a short `License`, then the classifiers: a long `License` is the
    licence's whole text.
    """
    fields = metadata.metadata
    expression = fields.get("License-Expression")
    if expression:
        return expression
    short = (fields.get("License") or "").strip()
    if short and "\n" not in short and len(short) < 50:
        return SPDX.get(short.lower(), short)
    classifiers = fields.get_all("Classifier") or []
    names = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License :: ")]
    return " AND ".join(SPDX.get(n.lower(), n) for n in names) or "unknown"


def permitted(expression: str) -> bool:
    """Whether all parts of an expression that are joined by AND are allowed, of those joined by OR one."""
    parts = re.sub(r"[()]", "", expression)
    return all(
        any(choice.strip() in ALLOWED for choice in part.split(" OR "))
        for part in parts.split(" AND ")
    )


def closure(requirements: list[str], extra: str = "") -> dict[str, Distribution]:
    """The installed distributions that `requirements` lead to, by canonical name."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(Requirement(r), extra) for r in requirements]
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                queue += [(Requirement(r), wanted) for r in found[name].requires or []]
    return found


def main() -> int:
    declared = requires("spikenlp") or []
    extras = distribution("spikenlp").metadata.get_all("Provides-Extra") or []
    found = closure(declared)
    for extra in extras:
        if extra not in NEVER_IMPORTED:
            found |= closure(declared, extra)
    rows = {d.metadata["Name"]: licence_of(d) for d in found.values()}
    lines = [f"| {name} | {rows[name]} |" for name in sorted(rows, key=str.lower)]
    others = [f"`{e}` ({licence})" for e, licence in NEVER_IMPORTED.items()]
    LIST.write_text(
        "# Licences of the dependencies\n\nWritten by `python .ci/licences.py` from the metadata of what is "
        "installed: dependencies and installed extras, and what they need.\nNever imported, and installed only on "
        f"request: {', '.join(others)}.\n\n| name | licence |\n|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )
    refused = {name: licence for name, licence in rows.items() if not permitted(licence)}
    if refused:
        print(f"licences that are not in ALLOWED: {refused}", file=sys.stderr)
    return bool(refused)


if __name__ == "__main__":
    sys.exit(main())
