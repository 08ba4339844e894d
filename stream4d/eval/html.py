"""Results as one self-contained HTML file: tables and pictures, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from typing import Any

from stream4d.eval.plots import figures, png
from stream4d.eval.report import cells, failed

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
tbody tr:last-child td { font-weight: 600; border-top: 2px solid #888; }
.failed td { color: #b00020; }
figure { display: inline-block; margin: .3rem; } img { max-width: 100%; height: auto; }
small { color: #666; }
"""


def html_page(results: dict[str, Any], command: str = "") -> str:
    """Return the page."""
    kind = "calibrated" if results["calibrated"] else "uncalibrated"
    title = f"{results['model']}, {kind}"
    reasons = "".join(
        f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in failed(results)
    )
    run = results["run"]
    parts = [
        f"<h1>stream4d evaluation: {escape(title)}</h1>",
        f"<p><small>stream4d {escape(run['version'])}, code {escape(run['code'])}</small></p>",
        f"<p><code>{escape(command)}</code></p>" if command else "",
        f"<div class=scroll>{_table(results)}</div>",
        f"<h2>Failed</h2><ul>{reasons}</ul>" if reasons else "",
        *(_sequence(row, results["details"].get(row["name"], {})) for row in results["sequences"]),
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def _table(results: dict[str, Any]) -> str:
    heading, lines = cells(results)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join(
        f"<tr{' class=failed' if 'failed' in line[1] else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in line)
        + "</tr>"
        for line in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _sequence(row: dict[str, Any], details: dict[str, Any]) -> str:
    images = "".join(
        f"<figure><img alt='{kind} of {escape(row['name'], quote=True)}' "
        f"src='data:image/png;base64,{base64.b64encode(png(figure, dpi=80)).decode()}'></figure>"
        for kind, figure in figures(row, details).items()
    )
    more = _details(details)
    if not images and not more:
        return ""
    return f"<h2>{escape(row['name'])}</h2>{images}{more}"


def _details(details: dict[str, Any]) -> str:
    """List the scalar figures that the table does not show."""
    shown = {key: value for key, value in details.items() if key != "plot"}
    items = [f"{escape(name)} {number:.4g}" for name, number in _scalars(shown)]
    return f"<p><small>{' · '.join(items)}</small></p>" if items else ""


def _scalars(group: dict[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    for key, value in group.items():
        name = f"{path} {key}".strip()
        if isinstance(value, dict):
            yield from _scalars(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
