"""The common style of the project's HTML pages, and data URIs for embedded files."""

from __future__ import annotations

import base64

STYLE = """
:root { color-scheme: light dark; --text: #1d2330; --soft: #5b6475; --back: #f6f7f9; --card: #fff; --line: #dde1e8;
  --error: #b3261e; --warning: #8a5a00; --good: #1b6e3c; --wave: #3d6fb6; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ef; --soft: #9aa4b5; --back: #14171d; --card: #1d222b;
  --line: #323a47; --error: #ff8a80; --warning: #f0b656; --good: #6fd197; --wave: #7fb0f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1.02rem; margin: 2rem 0 .1rem; } p { margin: .2rem 0 .8rem; } .soft { color: var(--soft); }
a { color: inherit; } code { font: .86em/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }
th, td { padding: .35rem .8rem; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


def data_uri(content: bytes, mime: str) -> str:
    """The content as a data URI, so that the page needs no other file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"
