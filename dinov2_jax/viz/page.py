"""The report as HTML: every text escaped, everything inside the one file."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from typing import Any

from dinov2_jax.escaping import shown

CSS = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1d2229;
  --soft: #5d6672; --line: #e2e6eb; --mark: #2f6db3; --good: #23764f; --warn: #8f5f00;
  --bad: #b02a2a; }
@media (prefers-color-scheme: dark) { :root { --page: #13161a; --card: #1b1f25;
  --ink: #e4e8ed; --soft: #9aa4b1; --line: #2e343d; --mark: #6ea8e5; --good: #5cc495;
  --warn: #e0b050; --bad: #f08080; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 2rem 1.25rem 4rem;
  background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; overflow-wrap: anywhere; }
.card > h3:first-child { margin-top: 0; } .runs td:last-child { white-space: nowrap; }
p { margin: .2rem 0; } .soft, figcaption, dt { color: var(--soft); }
.card, figure { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 1rem 1.1rem; margin: 0 0 1rem; }
.first { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin-top: 1.2rem; }
.first .card { margin: 0; } .answer { font-size: 1.3rem; font-weight: 650; }
.yes { color: var(--good); } .partly { color: var(--warn); } .no { color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
  gap: 1rem; margin: 1rem 0; } dl .card { margin: 0; padding: .7rem 1rem; }
dt { font-size: .85rem; } dd { margin: 0; font-size: 1.3rem; font-weight: 600; }
dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .32rem .7rem .32rem 0; vertical-align: top;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
tr:first-child > * { border-top: 0; } th:first-child:not(:only-child) { width: 34%; }
.runs th:first-child { width: auto !important; } th { font-weight: 500; color: var(--soft); }
.bars td:nth-child(2) { width: 55%; vertical-align: middle; }
.bars i { display: block; height: .65rem; border-radius: 3px; background: var(--mark);
  opacity: .4; } .bars .now i { opacity: 1; } .bars .now td { font-weight: 650; }
.bars td:last-child { text-align: right; padding-right: 0; white-space: nowrap; }
.wide { overflow-x: auto; } .wide th { white-space: nowrap; }
.runs th, .runs td { overflow-wrap: normal; } .runs th { white-space: normal;
  vertical-align: bottom; } .runs th[data-sort] { cursor: pointer; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
figure.curve .wide img { width: 100%; mix-blend-mode: multiply; }
figcaption { font-size: .88rem; margin-bottom: .6rem; }
figcaption b { color: var(--ink); font-size: 1rem; display: block; }
code, pre { font: .86rem/1.5 ui-monospace, "Liberation Mono", Menlo, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 .8rem;
  user-select: all; } summary { cursor: pointer; }
details { border-top: 1px solid var(--line); padding: .4rem 0; }
details:first-child { border-top: 0; } details table { margin: .4rem 0 .6rem; }
.note { border-left: 4px solid var(--warn); }
@media (prefers-color-scheme: dark) {
  figure.curve .wide img { filter: invert(1) hue-rotate(180deg);
    mix-blend-mode: screen; } }
@media (max-width: 720px) { body { padding: 1.2rem .8rem 3rem; }
  .first { grid-template-columns: 1fr; } dl { gap: .6rem; }
  dl { grid-template-columns: 1fr 1fr; } dl .card:last-child { grid-column: 1 / -1; }
  .card, figure { padding: .8rem; }
  figure.curve .wide img { width: 760px; max-width: none; } }
"""
# A click on a heading sorts the comparison by that column, largest first.
SCRIPT = """
for (const head of document.querySelectorAll("th[data-sort]")) {
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const value = (row) => parseFloat(row.cells[head.cellIndex].dataset.value);
    const key = (row) => Number.isNaN(value(row)) ? -Infinity : value(row);
    const sign = head.dataset.sort === "down" ? -1 : 1;
    head.dataset.sort = sign > 0 ? "down" : "up";
    body.append(...[...body.rows].sort((a, b) => sign * (key(b) - key(a) || 0)));
  });
}
"""


def document(title: str, body: Sequence[str]) -> str:
    """A whole page; its policy forbids every request and every other script.

    Args:
        title: plain text.
        body: parts, HTML.
    """
    digest = hashlib.sha256(SCRIPT.encode()).digest()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{base64.b64encode(digest).decode()}'"
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title>",
            f"<style>{CSS}</style></head><body>",
            *body,
            f"<script>{SCRIPT}</script></body></html>\n",
        ]
    )


def text(value: Any) -> str:
    """Any value as escaped text: strings as they are, the rest as JSON."""
    if not isinstance(value, str):
        value = json.dumps(value, default=str, ensure_ascii=False)
    # A path in a setting may hold what is not UTF-8.
    return html.escape("\n".join(map(shown, value.split("\n"))))


def table(rows: Sequence[tuple[str, Any]]) -> str:
    """Two columns: names and values, both escaped."""
    cells = [f"<tr><th>{text(k)}</th><td>{text(v)}</td></tr>" for k, v in rows]
    return f"<table>{''.join(cells)}</table>"


def grid(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with headings, all escaped; it scrolls where it is too wide."""
    head = "".join(f"<th>{text(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{text(value)}</td>" for value in row) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def figure(kind: str, title: str, caption: str, png: bytes) -> str:
    """A picture inside the page.

    Args:
        kind: `curve` (adapts to a dark page) or `picture`.
        title: plain text.
        caption: plain text below it.
        png: the file.
    """
    data = base64.b64encode(png).decode()
    return (
        f'<figure class="{kind}"><figcaption><b>{text(title)}</b>{text(caption)}'
        f'</figcaption><div class="wide"><img alt="{text(title)}" '
        f'src="data:image/png;base64,{data}"></div></figure>'
    )


def folded(title: str, inner: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{text(title)}</summary>{inner}</details>"
