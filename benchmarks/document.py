# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the tables that the benchmarks have printed into docs/benchmarks.md.

    python benchmarks/document.py

A table named in the page by ``<!-- NAME -->`` replaces what stands between that line and ``<!-- end -->``, where
``benchmarks/results/NAME.md`` exists.
"""

from __future__ import annotations

import re

from common import RESULTS, ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
PLACE = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->\n", re.DOTALL)


def fill(match: re.Match[str]) -> str:
    """A place with its table, or as it was."""
    found = RESULTS / f"{match[1]}.md"
    if not found.is_file():
        print(f"no {found.name} yet: its table stays as it is")
        return match[0]
    return f"<!-- {match[1]} -->\n\n{found.read_text()}\n<!-- end -->\n"


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(PLACE.sub(fill, PAGE.read_text()))


if __name__ == "__main__":
    main()
