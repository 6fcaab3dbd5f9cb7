"""Print the parity table: `python -m edgediffusion.bench.parity [NAME ...]` for the classes whose names hold a NAME."""

from __future__ import annotations

import sys

from .cases import FLAGS, Family
from .reference import Comparison, parity
from .stochastic_cases import ALL


def main(names: list[str]) -> int:
    """A row for each class of diffusers, a column for each sigma schedule. The status is 1 when a case differs."""
    rule = ["---"] * (len(FLAGS) + 2)
    sys.stdout.writelines(_line(cells) for cells in (["diffusers' class", *FLAGS, "cases"], rule))
    failures: list[str] = []
    for family in ALL:
        if names and not any(name in family.title for name in names):
            continue
        results = {sigmas: list(parity(family, sigmas)) for sigmas in family.sigmas}
        sys.stdout.write(row(family, {sigmas: [result for _, result in of] for sigmas, of in results.items()}))
        sys.stdout.flush()
        for case, result in (pair for of in results.values() for pair in of):
            failures += [f"{family.title}, {case}: {result.failure}\n"] if result.failure else []
    sys.stdout.writelines(failures)
    return 1 if failures else 0


def row(family: Family, results: dict[str, list[Comparison]]) -> str:
    """The largest relative error with each sigma schedule, and the number of cases."""
    largest = {sigmas: max(result.error for result in of) for sigmas, of in results.items()}
    cells = [f"{largest[sigmas]:.0e}" if sigmas in largest else "\N{EN DASH}" for sigmas in FLAGS]
    return _line([family.title, *cells, str(sum(map(len, results.values())))])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
