"""`make bench`: run the benchmarks named, or all; each is a file `bench_NAME.py` here with a function `run`.

`run` prints its own table. Times depend on what else the machine does, so whatever is compared is
measured in turns within one run.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

if __name__ == "__main__":
    known = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all by default")
    names = parser.parse_args().names or known
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no benchmark {unknown[0]!r}; there are: {', '.join(known)}")
    for name in names:
        importlib.import_module(f"bench_{name}").run()
