"""A report as one HTML page that needs nothing else: pictures of what is wrong lie in it as data URIs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from qdformer.audio.io.read import decode_audio
from qdformer.data.checks.findings import KINDS, Finding, Report
from qdformer.data.labels import to_class_ids
from qdformer.data.layout import PALETTE
from qdformer.reporting.html import STYLE, data_uri
from qdformer.utils.constants import IGNORE_INDEX

SHOWN = 20
"""Findings of a kind that the page shows; the JSON beside it has all."""
_SIDE = 176  # pixels of a thumbnail's longer side
_PICTURES, _SOUNDS = (".jpg", ".jpeg", ".png"), (".wav", ".flac", ".ogg", ".mp3")
_OTHERS = 2  # of the files that equal one, shown beside it

_STYLE = (
    STYLE
    + """
.error { color: var(--error); font-weight: 600; } .warning { color: var(--warning); font-weight: 600; }
.good { color: var(--good); font-weight: 600; }
ul.cards { list-style: none; margin: .6rem 0 0; padding: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.cards li { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem; min-width: 0; }
.cards .shots { display: flex; gap: .35rem; margin-bottom: .5rem; min-height: 5rem; align-items: center; }
.cards .shots > * { min-width: 0; max-width: 100%; border-radius: 3px; } .cards img { flex: 0 1 auto; height: auto; }
.cards .none { flex: 1; align-self: stretch; display: grid; place-items: center; color: var(--soft);
  border: 1px dashed var(--line); font-size: .85rem; }
.cards b { overflow-wrap: anywhere; } .cards code { display: block; color: var(--soft); font-size: .78em; }
svg { color: var(--wave); width: 100%; }
ol.lines { background: var(--card); border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0 0;
  padding: .6rem .9rem .6rem 2.6rem; } ol.lines li { padding: .1rem 0; overflow-wrap: anywhere; }
"""
)


def make_page(reports: Sequence[Report]) -> str:
    """The page of the reports of data sets that lie where their `source` says; equal reports give equal pages."""
    body = "".join(part for report in reports for part in _report(report))
    errors = sum(len(report.errors) for report in reports)
    verdict = (
        f'<span class="error">{_count(errors, "error")}</span>' if errors else '<span class="good">no error</span>'
    )
    warnings = sum(len(report.findings) for report in reports) - errors
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><title>Data check</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>Data check</h1>\n"
        f"<p>{verdict}, {_count(warnings, 'warning')}. An error stops the pipeline; a warning is worth knowing.</p>\n"
        f"{body}</body></html>\n"
    )


def _report(report: Report) -> Iterator[str]:
    clips = ", ".join(f"{count:,} {split}" for split, count in report.clips.items())
    opened = f"{report.files:,} files opened" if report.files else "lists only, no file opened"
    yield f'<h2><code>{escape(report.source)}</code></h2>\n<p class="soft">{escape(clips)}; {opened}</p>\n'
    groups = report.by_kind()
    if not groups:
        yield "<p>Nothing found.</p>\n"
        return
    anchor = _slug(report.source)
    rows = (
        (
            f'<span class="{findings[0].severity}">{findings[0].severity}</span>',
            f'<a href="#{anchor}-{kind}">{KINDS[kind].title}</a>',
            f"{len(findings):,}",
        )
        for kind, findings in groups.items()
    )
    yield _table(("", "what", "found"), rows, numbers=1)
    yield from _sharing(report)
    for kind, findings in groups.items():
        yield f'<h3 id="{anchor}-{kind}"><span class="{findings[0].severity}">{findings[0].severity}</span> '
        yield f'{KINDS[kind].title} <span class="soft">({len(findings):,})</span></h3>\n'
        yield f'<p class="soft">{KINDS[kind].meaning}</p>\n'
        shown = findings[:SHOWN]
        yield _examples(Path(report.source), shown)
        if len(findings) > SHOWN:
            yield f'<p class="soft">and {len(findings) - SHOWN:,} more, all in check.json</p>\n'


def _sharing(report: Report) -> Iterator[str]:
    if not report.sharing:
        return
    whole = report.spanning[0]
    yield "<h3>Videos that several splits have clips of</h3>\n"
    yield f'<p class="soft">{whole.videos:,} of {whole.of:,} videos lie in more than one split'
    parts = [f"{one.videos:,} of {one.of:,} of {escape(one.subset)} alone" for one in report.spanning[1:] if one.videos]
    yield f"{''.join(f'; {part}' for part in parts)}.</p>\n"
    rows = (
        (one.split, one.other, one.subset or "all", f"{one.clips:,}", f"{one.of:,}", f"{one.videos:,}")
        for one in report.sharing
    )
    escaped = ([escape(cell) for cell in row] for row in rows)
    yield _table(("clips of", "share a video with", "subset", "clips", "of", "videos"), escaped, numbers=3)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """A table of ready HTML whose last `numbers` columns hold numbers."""
    words = len(header) - numbers

    def line(tag: str, cells: Sequence[str]) -> str:
        marks = (f'{tag} class="number"' if place >= words else tag for place in range(len(cells)))
        return "<tr>" + "".join(f"<{mark}>{cell}</{tag}>" for mark, cell in zip(marks, cells, strict=True)) + "</tr>"

    lines = line("th", header) + "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table>{lines}</table></div>\n'


def _examples(root: Path, findings: Sequence[Finding]) -> str:
    """Cards with pictures, or plain lines where there is nothing to show."""
    shots = [_shots(root, finding) for finding in findings]
    if any(shots):
        cards = "".join(_card(finding, shown) for finding, shown in zip(findings, shots, strict=True))
        return f'<ul class="cards">{cards}</ul>\n'
    return f'<ol class="lines">{"".join(f"<li>{escape(str(finding))}</li>" for finding in findings)}</ol>\n'


def _card(finding: Finding, shots: Sequence[str]) -> str:
    drawn = "".join(shots) or '<span class="none">nothing to show</span>'
    return (
        f'<li><div class="shots">{drawn}</div><b>{escape(finding.clip)}</b> {escape(finding.message)}'
        f"<code>{escape(finding.file)}</code></li>"
    )


def _shots(root: Path, finding: Finding) -> list[str]:
    """Pictures of a finding's files, without those that cannot be read: some are shown for being so."""
    shots = []
    for file in [finding.file, *finding.values.get("others", [])[:_OTHERS]]:
        with contextlib.suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            shots += _shots_of(root, file, finding)
    return shots


def _shots_of(root: Path, file: str, finding: Finding) -> list[str]:
    if Path(file).suffix in _SOUNDS:
        return [_wave(root / file)]
    if Path(file).suffix not in _PICTURES:
        return []
    if "picture" not in finding.values:
        with Image.open(root / file) as image:
            return [_image(_coloured(image) if image.mode == "P" else image.convert("RGB"))]
    shown = _overlay(root / finding.values["picture"], root / file, finding.values["binary"])
    if "box" not in finding.values:
        return [_image(shown)]
    room = max(6, max(shown.size) // 20)
    left, top, right, bottom = (int(side) for side in np.array(finding.values["box"]) + (-room, -room, room, room))
    near = shown.crop((left, top, right, bottom))
    ImageDraw.Draw(shown).rectangle((left, top, right - 1, bottom - 1), outline="white", width=max(1, room // 6))
    return [_image(shown), _image(near)]


def _coloured(labels: Image.Image) -> Image.Image:
    coloured = Image.fromarray(np.asarray(labels), "L").convert("P")
    coloured.putpalette(PALETTE)
    return coloured.convert("RGB")


def _overlay(picture: Path, label: Path, binary: bool) -> Image.Image:
    """The picture, darkened, with the colours of its label map."""
    with Image.open(picture) as image, Image.open(label) as labels:
        ground = image.convert("RGB")
        labels = to_class_ids(labels, binary, "avss").resize(ground.size, Image.Resampling.NEAREST)
        shown = Image.blend(ground, Image.new("RGB", ground.size), 0.45)
        shown.paste(
            _coloured(labels), mask=Image.fromarray(np.isin(np.asarray(labels), (0, IGNORE_INDEX), invert=True))
        )
    return shown


def _image(image: Image.Image) -> str:
    scale = _SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST).save(
        buffer, "JPEG", quality=82
    )
    source = data_uri(buffer.getvalue(), "image/jpeg")
    return f'<img alt="" width="{size[0]}" height="{size[1]}" src="{source}">'


def _wave(path: Path) -> str:
    """The lowest and highest sample of each of 160 parts of a sound, as a drawing."""
    samples, _ = decode_audio(path)
    parts = np.array_split(np.nan_to_num(samples.mean(axis=1)).clip(-1, 1), 160)
    bars = "".join(
        f"M{place} {_level(part.max())}V{_level(part.min())}" for place, part in enumerate(parts) if part.size
    )
    return (
        f'<svg viewBox="-1 0 162 64" role="img" aria-label="waveform"><path d="M-1 32H161" stroke="currentColor" '
        f'stroke-width=".5" opacity=".5"/><path d="{bars}" stroke="currentColor" fill="none"/></svg>'
    )


def _level(sample: float) -> str:
    return f"{32 - 30 * float(sample):.1f}"


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
