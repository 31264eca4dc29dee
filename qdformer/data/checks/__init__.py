"""Validates a data set before anything is computed from it.

`findings` defines the kinds of problems and their severity, `lists` finds problems in the tables, `files` finds them in
the pictures, label maps and sounds.
"""

from qdformer.data.checks.files import check_dataset, check_sounds
from qdformer.data.checks.findings import KINDS, Finding, Report, SplitOverlap, VideoSpan, raise_on_errors
from qdformer.data.checks.lists import check_clip_list

__all__ = [
    "KINDS",
    "Finding",
    "Report",
    "SplitOverlap",
    "VideoSpan",
    "check_dataset",
    "check_sounds",
    "check_clip_list",
    "raise_on_errors",
]
