"""Print the parity table: `python -m edgediffusion.bench.parity [NAME ...]` for the classes whose names hold a NAME."""

from __future__ import annotations

import sys

from .cases import FAMILIES
from .reference import parity


def main(names: list[str]) -> int:
    """A line for each class of diffusers and sigma schedule. The status is 1 when a case differs."""
    write = sys.stdout.write
    write("| diffusers' class | sigmas | largest relative error | cases |\n| --- | --- | --- | --- |\n")
    failures = []
    for family in FAMILIES:
        if names and not any(name in family.name for name in names):
            continue
        for sigmas in family.sigmas:
            results = list(parity(family, sigmas))
            largest = max(result.error for _, result in results)
            write(f"| {family.name} | {sigmas} | {largest:.1e} | {len(results)} |\n")
            failures += [f"{family.name}, {case}: {result.failure}\n" for case, result in results if result.failure]
    sys.stdout.writelines(failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
