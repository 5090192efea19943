"""Tables of words and how each was written, for distill.py: a task of tokens that any text with capitals gives.

    python recipes/truecasing.py --task_name mrpc --data_dir glue --output_dir outputs/truecasing
    python recipes/distill.py --task_name own_data --data_dir outputs/truecasing \\
        --model_name_or_path path/to/bert --output_dir outputs/distill_truecasing

The words of the task's (first) text in small letters, each with a label: lower, capital (its first letter), upper
(all letters, two or more). Who cannot see the capitals must know names and where sentences begin (Lita et al., tRuEcasIng,
ACL 2003).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from spikenlp.data import TASKS, get_task, load_task


def label_of(word: str) -> str:
    letters = [c for c in word if c.isalpha()]
    if len(letters) > 1 and all(map(str.isupper, letters)):
        return "upper"
    return "capital" if letters and letters[0].isupper() else "lower"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task_name", required=True, help=f"One of {', '.join(TASKS)}.")
    parser.add_argument("--data_dir", help="Folder of its files, as for glue_tmc.py.")
    parser.add_argument("--dataset", help="Or its hub data set: nyu-mll/glue.")
    parser.add_argument("--output_dir", required=True, help="Folder for the tables.")
    args = parser.parse_args()
    column = get_task(args.task_name).text_columns[0]
    data = load_task(args.task_name, data_dir=args.data_dir, dataset=args.dataset)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    validation = next(name for name in data if name.startswith(("validation", "test")))
    for split, source in (("train", "train"), ("validation", validation)):
        rows = [text.split() for text in data[source][column]]
        records = [
            {"text": [word.lower() for word in words], "label": [label_of(word) for word in words]}
            for words in rows
            if words
        ]
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{split}: {len(records):,} texts, {sum(map(len, rows)):,} words")


if __name__ == "__main__":
    main()
