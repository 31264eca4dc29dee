"""WebVTT captions of what sounds when."""

from __future__ import annotations

from collections.abc import Mapping


class Captions:
    """Collects the sounding classes second by second and writes one cue for each uninterrupted stretch of a class."""

    def __init__(self) -> None:
        self._cues: list[tuple[float, float, str, list[float]]] = []
        self._open: dict[str, int] = {}

    def add(self, start: float, end: float, scores: Mapping[str, float]) -> None:
        """Add the second from `start` to `end` with the scores of its sounding classes; seconds come in order."""
        still_open = {}
        for name, score in scores.items():
            place = self._open.get(name)
            if place is not None and self._cues[place][1] == start:
                first, _, _, earlier = self._cues[place]
                self._cues[place] = (first, end, name, [*earlier, score])
            else:
                place = len(self._cues)
                self._cues.append((start, end, name, [score]))
            still_open[name] = place
        self._open = still_open

    def text(self) -> str:
        """The WebVTT file, cues in the order of their start; a cue states the mean score of its seconds."""
        cues = [
            f"{_timestamp(start)} --> {_timestamp(end)}\n{_escape(name)} {sum(scores) / len(scores):.2f}\n"
            for start, end, name, scores in sorted(self._cues, key=lambda cue: (cue[0], cue[2]))
        ]
        return "\n".join(["WEBVTT\n", *cues])


def _timestamp(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
