"""Judging a data set before anything is computed from it.

`findings` says what can be wrong and how bad it is, `tables` finds it in the lists alone, `files` in the pictures,
label maps and sounds, `page` shows it.
"""

from qdformer.data.checks.files import check_dataset, check_sounds
from qdformer.data.checks.findings import KINDS, Finding, Report, Sharing, Spanning, stop_on_errors
from qdformer.data.checks.page import make_page
from qdformer.data.checks.tables import check_table

__all__ = [
    "KINDS",
    "Finding",
    "Report",
    "Sharing",
    "Spanning",
    "check_dataset",
    "check_sounds",
    "check_table",
    "make_page",
    "stop_on_errors",
]
