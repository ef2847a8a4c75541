# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the tables that the benchmarks have printed into docs/benchmarks.md and docs/scaling.md.

    python benchmarks/document.py

A table named in a page by ``<!-- NAME -->`` replaces what stands between that line and ``<!-- end -->``, where
``benchmarks/results/NAME.md`` exists.
"""

from __future__ import annotations

import re

from common import RESULTS, ROOT

PAGES = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "scaling.md"
PLACE = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->\n", re.DOTALL)


def fill(match: re.Match[str]) -> str:
    """A place with its table, or as it was."""
    found = RESULTS / f"{match[1]}.md"
    if not found.is_file():
        print(f"no {found.name} yet: its table stays as it is")
        return match[0]
    return f"<!-- {match[1]} -->\n\n{found.read_text()}\n<!-- end -->\n"


def main() -> None:
    """Rewrite the pages."""
    for page in PAGES:
        page.write_text(PLACE.sub(fill, page.read_text()))


if __name__ == "__main__":
    main()
