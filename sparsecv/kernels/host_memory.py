# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory of the host that this process may use: what the system has left, within the limits of its control groups."""

from __future__ import annotations

from pathlib import Path

NO_LIMIT = 1 << 60  # version 1 writes a number near 2^63 where there is none


def free_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Free and total bytes; what the system would give back (caches) counts as free. (0, 0) where nothing is known."""
    known = _fields(root / "proc/meminfo")
    free, total = 1024 * known.get("MemAvailable:", 0), 1024 * known.get("MemTotal:", 0)
    for limit, used in _limits(root):
        total, free = min(total, limit), min(free, max(limit - used, 0))
    return free, total


def _limits(root: Path) -> list[tuple[int, int]]:
    """Limit and used bytes of each control group that the process is in and that has a limit."""
    base, found = root / "sys/fs/cgroup", []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = base, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = base / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = top / path.strip("/")
        # Inside a container the path is that of the host, of which only the top may be there to be seen.
        for group in {top, own, *(parent for parent in own.parents if top in parent.parents)}:
            limit, used = _text(group / names[0]).strip(), _text(group / names[1]).strip()
            if limit.isdigit() and used.isdigit() and int(limit) < NO_LIMIT:
                found.append((int(limit), int(used) - _fields(group / "memory.stat").get(names[2], 0)))
    return found


def _fields(path: Path) -> dict[str, int]:
    """First number of each line, by the line's first word."""
    words = (line.split() for line in _text(path).splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
