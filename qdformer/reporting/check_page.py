"""The reports of a data check as one HTML page without external files: its images are embedded as data URIs."""

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

MAX_SHOWN = 20
"""Findings of each kind that the page shows; `check.json` has all of them."""
_THUMBNAIL_SIZE = 176  # pixels of the longer side
_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
_SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_MAX_COPIES = 2  # identical files shown beside the file of a finding

_STYLE = (
    STYLE
    + """
.error { color: var(--error); font-weight: 600; } .warning { color: var(--warning); font-weight: 600; }
.good { color: var(--good); font-weight: 600; }
ul.cards { list-style: none; margin: .6rem 0 0; padding: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.cards li { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem; min-width: 0; }
.cards .thumbnails { display: flex; gap: .35rem; margin-bottom: .5rem; min-height: 5rem; align-items: center; }
.cards .thumbnails > * { min-width: 0; max-width: 100%; border-radius: 3px; }
.cards img { flex: 0 1 auto; height: auto; }
.cards .none { flex: 1; align-self: stretch; display: grid; place-items: center; color: var(--soft);
  border: 1px dashed var(--line); font-size: .85rem; }
.cards b { overflow-wrap: anywhere; } .cards code { display: block; color: var(--soft); font-size: .78em; }
svg { color: var(--wave); width: 100%; }
ol.lines { background: var(--card); border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0 0;
  padding: .6rem .9rem .6rem 2.6rem; } ol.lines li { padding: .1rem 0; overflow-wrap: anywhere; }
"""
)


def make_page(reports: Sequence[Report]) -> str:
    """The page as HTML, which depends on nothing but the reports and the files below the `source` of each."""
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
        f"<p>{verdict}, {_count(warnings, 'warning')}. Errors stop the pipeline; warnings do not.</p>\n"
        f"{body}</body></html>\n"
    )


def _report(report: Report) -> Iterator[str]:
    clips = ", ".join(f"{count:,} {split}" for split, count in report.clips.items())
    opened = f"{report.files:,} files opened" if report.files else "no file opened"
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
    yield _table(("", "kind", "found"), rows, numbers=1)
    yield from _sharing(report)
    for kind, findings in groups.items():
        yield f'<h3 id="{anchor}-{kind}"><span class="{findings[0].severity}">{findings[0].severity}</span> '
        yield f'{KINDS[kind].title} <span class="soft">({len(findings):,})</span></h3>\n'
        yield f'<p class="soft">{KINDS[kind].meaning}</p>\n'
        shown = findings[:MAX_SHOWN]
        yield _examples(Path(report.source), shown)
        if len(findings) > MAX_SHOWN:
            yield f'<p class="soft">{len(findings) - MAX_SHOWN:,} more in check.json</p>\n'


def _sharing(report: Report) -> Iterator[str]:
    if not report.sharing:
        return
    total = report.spanning[0]
    yield "<h3>Videos with clips in several splits</h3>\n"
    yield f'<p class="soft">{total.videos:,} of {total.of:,} videos have clips in more than one split'
    parts = [f"{one.videos:,} of {one.of:,} of {escape(one.subset)} alone" for one in report.spanning[1:] if one.videos]
    yield f"{''.join(f'; {part}' for part in parts)}.</p>\n"
    rows = (
        (one.split, one.other, one.subset or "all", f"{one.clips:,}", f"{one.of:,}", f"{one.videos:,}")
        for one in report.sharing
    )
    escaped = ([escape(cell) for cell in row] for row in rows)
    yield _table(("clips of", "share a video with", "subset", "clips", "of", "videos"), escaped, numbers=3)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """A table of HTML cells; the last `numbers` columns are aligned to the right."""
    attributes = [""] * (len(header) - numbers) + [' class="number"'] * numbers

    def line(tag: str, cells: Sequence[str]) -> str:
        tagged = (f"<{tag}{attribute}>{cell}</{tag}>" for attribute, cell in zip(attributes, cells, strict=True))
        return f"<tr>{''.join(tagged)}</tr>"

    lines = line("th", header) + "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table>{lines}</table></div>\n'


def _examples(root: Path, findings: Sequence[Finding]) -> str:
    """The findings as cards with thumbnails, or as a list if no finding has one."""
    thumbnails = [_thumbnails(root, finding) for finding in findings]
    if any(thumbnails):
        cards = "".join(map(_card, findings, thumbnails))
        return f'<ul class="cards">{cards}</ul>\n'
    return f'<ol class="lines">{"".join(f"<li>{escape(str(finding))}</li>" for finding in findings)}</ol>\n'


def _card(finding: Finding, thumbnails: Sequence[str]) -> str:
    content = "".join(thumbnails) or '<span class="none">no preview</span>'
    return (
        f'<li><div class="thumbnails">{content}</div><b>{escape(finding.clip)}</b> {escape(finding.message)}'
        f"<code>{escape(finding.file)}</code></li>"
    )


def _thumbnails(root: Path, finding: Finding) -> list[str]:
    """Thumbnails of the files of a finding; files that cannot be read, which may be the finding itself, have none."""
    thumbnails = []
    for file in [finding.file, *finding.values.get("others", [])[:_MAX_COPIES]]:
        with contextlib.suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            thumbnails += _file_thumbnails(root, file, finding)
    return thumbnails


def _file_thumbnails(root: Path, file: str, finding: Finding) -> list[str]:
    """Thumbnails of one file: the waveform of a sound, a picture, or a label map over its picture.

    A finding about a component of a label map adds an enlarged view of its box.
    """
    if Path(file).suffix in _SOUND_SUFFIXES:
        return [_waveform(root / file)]
    if Path(file).suffix not in _PICTURE_SUFFIXES:
        return []
    if "picture" not in finding.values:
        with Image.open(root / file) as image:
            return [_thumbnail(_colorize(image) if image.mode == "P" else image.convert("RGB"))]
    shown = _overlay(root / finding.values["picture"], root / file, finding.values["binary"])
    if "box" not in finding.values:
        return [_thumbnail(shown)]
    margin = max(6, max(shown.size) // 20)
    left, top, right, bottom = (
        int(side) for side in np.array(finding.values["box"]) + (-margin, -margin, margin, margin)
    )
    enlarged = shown.crop((left, top, right, bottom))
    ImageDraw.Draw(shown).rectangle((left, top, right - 1, bottom - 1), outline="white", width=max(1, margin // 6))
    return [_thumbnail(shown), _thumbnail(enlarged)]


def _colorize(labels: Image.Image) -> Image.Image:
    """A label map in the colors of its classes."""
    colored = Image.fromarray(np.asarray(labels), "L").convert("P")
    colored.putpalette(PALETTE)
    return colored.convert("RGB")


def _overlay(picture: Path, label_map: Path, binary: bool) -> Image.Image:
    """The picture, darkened, with its label map in color; pixels of the background or without label stay clear."""
    with Image.open(picture) as image, Image.open(label_map) as label_image:
        background = image.convert("RGB")
        labels = to_class_ids(label_image, binary, "avss").resize(background.size, Image.Resampling.NEAREST)
    shown = Image.blend(background, Image.new("RGB", background.size), 0.45)
    objects_HW = np.isin(np.asarray(labels), (0, IGNORE_INDEX), invert=True)
    shown.paste(_colorize(labels), mask=Image.fromarray(objects_HW))
    return shown


def _thumbnail(image: Image.Image) -> str:
    scale = _THUMBNAIL_SIZE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    resampling = Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST
    buffer = io.BytesIO()
    image.resize((width, height), resampling).save(buffer, "JPEG", quality=82)
    source = data_uri(buffer.getvalue(), "image/jpeg")
    return f'<img alt="" width="{width}" height="{height}" src="{source}">'


def _waveform(path: Path) -> str:
    """A sound as SVG: one bar from the lowest to the highest sample of each of 160 parts."""
    samples, _ = decode_audio(path)
    parts = np.array_split(np.nan_to_num(samples.mean(axis=1)).clip(-1, 1), 160)
    bars = "".join(
        f"M{index} {_svg_height(part.max())}V{_svg_height(part.min())}" for index, part in enumerate(parts) if part.size
    )
    return (
        f'<svg viewBox="-1 0 162 64" role="img" aria-label="waveform"><path d="M-1 32H161" stroke="currentColor" '
        f'stroke-width=".5" opacity=".5"/><path d="{bars}" stroke="currentColor" fill="none"/></svg>'
    )


def _svg_height(sample: float) -> str:
    return f"{32 - 30 * float(sample):.1f}"


def _slug(text: str) -> str:
    """The text as an id of HTML."""
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
