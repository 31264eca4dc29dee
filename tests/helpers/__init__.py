"""Small data sets, models and results that several tests use, and where the project lies."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
GOLDEN = PROJECT / "tests" / "golden"
