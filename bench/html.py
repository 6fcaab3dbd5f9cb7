"""The report: one HTML file that opens offline, with plots inside."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from pathlib import Path

from .plots import drawn
from .report import write_text
from .schema import Results
from .stats import WIDE
from .tables import facts, tables

_CSS = """
body { font: 14px/1.45 system-ui, sans-serif; color: #222; max-width: 72em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 0.5em 0 2em; }
th, td { padding: 0.2em 0.9em 0.2em 0; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top;
  font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #888; }
figure { margin: 0 0 2em; } figure svg { max-width: 100%; height: auto; } figcaption { color: #555; }
.wide { color: #b00020; font-weight: 600; }
"""
_CAPTIONS = {
    "beside": "How many times as long as edgediffusion each peer takes.",
    "latency-quality": "Latency against quality; the numbers are steps.",
    "steps-quality": "Steps against quality.",
    "batch-throughput": "Pictures a second by batch.",
    "timeline": "One generation: when the engines ran.",
    "growth": "Cost as work grows, with the exponent.",
}


def write_html(path: Path, results: Results) -> None:
    """Write the report.

    Raises:
        UsageError: `path` cannot be written; nothing is left behind.
        BackendUnavailable: matplotlib is not installed.
    """
    write_text(path, "\n".join(_document(results)) + "\n")


def _document(results: Results) -> Iterator[str]:
    title = f"edgediffusion bench: {results.settings['model']}"
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    yield f"<style>{_CSS}</style></head><body>\n<h1>{html.escape(title)}</h1>"
    yield (
        f"<p>WIDE marks what scatters by more than {100 * WIDE:.0f} %: too much to tell a tenth. The spread is the "
        "interquartile range through the median; ratios are of medians, round by round.</p>"
    )
    for name, data in drawn(results, "svg").items():
        yield f"<figure>{_svg(name, data.decode())}<figcaption>{_CAPTIONS[name]}</figcaption></figure>"
    for table in tables(results):
        yield f"<h2>{html.escape(table.title)}</h2>"
        yield from _table(table.headers, table.rows)
    if results.skipped:
        yield (
            "<h2>Not measured</h2><ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in results.skipped) + "</ul>"
        )
    yield "<h2>Machine and settings</h2>"
    yield from _table(("", ""), facts(results))
    yield "</body></html>"


def _svg(name: str, text: str) -> str:
    """The element alone; its ids get the plot's name, as all plots share one document."""
    element = text[text.index("<svg") :]
    for before in ('id="', "url(#", 'href="#'):
        element = element.replace(before, f"{before}{name}-")
    return element


def _table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{html.escape(header)}</th>" for header in headers) + "</tr>"
    for cells in rows:
        yield "<tr>" + "".join(_cell(cell) for cell in cells) + "</tr>"
    yield "</table>"


def _cell(text: str) -> str:
    return f'<td class="wide">{html.escape(text)}</td>' if "WIDE" in text else f"<td>{html.escape(text)}</td>"
