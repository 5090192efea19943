"""Mutates small valid files and feeds them to the readers: each gives a valid result or a clear error.

    python benchmarks/fuzz.py --mutations 10000 --output results/reliability/fuzz.json

Memory is limited to what is in use at the start and `--memory_gib` more, so that a reader that believes
a damaged length shows. Exits with 1 where anything else than ValueError or FileNotFoundError came out.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikenlp.provenance import run_record
from tests.data.fuzzing import fuzz, targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10_000, help="of each reader's files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", choices=sorted(targets()), help="default: all")
    parser.add_argument("--memory_gib", type=float, default=2.0)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = in_use + int(args.memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    record: dict = {"run": run_record(), "seed": args.seed, "readers": {}}
    leaks = 0
    for name, target in targets().items():
        if args.readers and name not in args.readers:
            continue
        start = time.perf_counter()
        findings = fuzz(target, args.mutations, args.seed)
        seconds = time.perf_counter() - start
        leaks += len(findings.leaks)
        record["readers"][name] = {**asdict(findings), "seconds": round(seconds, 1)}
        print(
            f"{name:14} {findings.mutations} mutations, {findings.valid} valid, "
            f"{dict(findings.outcomes)}, {len(findings.leaks)} leaks, {seconds:.0f} s",
            *findings.leaks[:5],
            sep="\n    " if findings.leaks else "",
            flush=True,
        )
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(1 if leaks else 0)


if __name__ == "__main__":
    main()
