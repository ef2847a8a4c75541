# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that watches all ranks, and says in one line why a run has ended before its time.

Launchers kill the other ranks some milliseconds after one has gone, or only after minutes, and none of them says what
helps. So the root starts this process, which no launcher knows: every rank holds a connection to it, which the system
closes when the rank dies, whatever the reason. The first one to close is the culprit. The hub prints, puts the reason
into the run's ``status.json``, tells all ranks that are left to end, and ends itself.

``python -m sparsecv.engine.ranks.hub RANKS`` prints its port and a token; it imports little, so as to be there at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import time
from pathlib import Path

from sparsecv.engine.errors import complain
from sparsecv.engine.io.results import write_json

CONNECT = 120.0  # s for all ranks to come
GRACE = 2.0  # s for the root to fail, too: of several messages about one fault its own is the best
FAILED = 1
LOST = "rank {rank} of {size} on {host} has gone: killed, out of memory, or its machine is down"
GO_ON = "; remedy: start the run again with --continue, which goes on after the last finished iteration"


class Hub:
    """Connections of all ranks.

    Parameters
    ----------
    size
        Number of ranks.
    server
        Listening socket.
    token
        What a rank has to know, so that nothing else that finds the port is listened to.
    """

    def __init__(self, size: int, server: socket.socket, token: str) -> None:
        self.size, self.server, self.token = size, server, token
        self.selector = selectors.DefaultSelector()
        self.selector.register(server, selectors.EVENT_READ)
        self.text: dict[socket.socket, bytes] = {}
        self.ranks: dict[socket.socket, tuple[int, str]] = {}
        self.status_file: Path | None = None
        self.failures: dict[int, tuple[int, str]] = {}
        self.deadline = time.monotonic() + CONNECT
        self.parted = 0

    def run(self) -> int:
        """Watch until all have parted in peace, or one has failed; the exit status of the run."""
        while self.parted < self.size:
            for key, _ in self.selector.select(timeout=0.2):
                if key.fileobj is self.server:
                    self._accept()
                else:
                    self._read(key.fileobj)  # type: ignore[arg-type]
            came = self.parted + len(self.ranks)
            if self.failures and (0 in self.failures or time.monotonic() > self.deadline):
                rank = min(self.failures)
                return self._end(*self.failures[rank], rank)
            if not self.failures and came < self.size and time.monotonic() > self.deadline:
                return self._end(FAILED, f"{came} of {self.size} ranks have come within {CONNECT:.0f} s", 0)
        return 0

    def _accept(self) -> None:
        link, _ = self.server.accept()
        link.setblocking(False)
        # a machine that is switched off closes nothing: the kernel asks after 5 s of silence, three times
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self.text[link] = b""
        self.selector.register(link, selectors.EVENT_READ)

    def _read(self, link: socket.socket) -> None:
        try:
            data = link.recv(65536)
        except BlockingIOError:
            return
        except OSError:  # reset, or no answer to the kernel's questions
            data = b""
        *lines, self.text[link] = (self.text[link] + data).split(b"\n")
        for line in lines:
            if link in self.text:
                self._hear(link, line.decode(errors="replace"))
        if link in self.text and (not data or len(self.text[link]) > 65536):
            self._lose(link)

    def _hear(self, link: socket.socket, line: str) -> None:
        word, _, rest = line.partition(" ")
        if link not in self.ranks:
            token, _, who = rest.partition(" ")
            rank, _, host = who.partition(" ")
            if word == "HELLO" and secrets.compare_digest(token, self.token) and rank.isdigit():
                self.ranks[link] = int(rank), host
            else:
                self._drop(link)
            return
        rank_of_link = self.ranks[link][0]
        if word == "STATUS":
            self.status_file = Path(json.loads(rest))
        elif word == "FAIL":
            status, text = json.loads(rest)
            self._fail(rank_of_link, status, text if rank_of_link == 0 else f"rank {rank_of_link}: {text}")
        elif word == "BYE":
            self.parted += 1
            self._drop(link)

    def _lose(self, link: socket.socket) -> None:
        """A connection has closed; of a rank, without a word, that means that it is dead."""
        if link in self.ranks:
            rank, host = self.ranks[link]
            if not self.failures:
                self._fail(rank, FAILED, LOST.format(rank=rank, size=self.size, host=host) + GO_ON)
                self.deadline = 0.0  # nobody else knows better
        self._drop(link)

    def _drop(self, link: socket.socket) -> None:
        if link in self.text:
            self.selector.unregister(link)
            del self.text[link]
            self.ranks.pop(link, None)
            link.close()

    def _fail(self, rank: int, status: int, text: str) -> None:
        if not self.failures:
            self.deadline = time.monotonic() + GRACE
        self.failures.setdefault(rank, (status, text))

    def _end(self, status: int, text: str, rank: int) -> int:
        """Say it, keep it, and let all ranks end."""
        if text:
            with contextlib.suppress(OSError):  # the launcher has gone, and its terminal with it
                complain(text)
            self._keep(text)
        for link in list(self.ranks):
            try:
                link.sendall(f"END {status}\n".encode())
            except OSError:
                pass
            self._drop(link)
        return status

    def _keep(self, text: str) -> None:
        """Mark the run as failed, where the root could not do so itself."""
        if self.status_file is None:
            return
        try:
            content = json.loads(self.status_file.read_text(encoding="utf-8"))
            if content.get("state") != "running":
                return
            content |= {"state": "failed", "error": text}
            write_json(self.status_file, content)
        except (OSError, ValueError):
            pass


def main() -> int:
    """Print the port and the token, and watch."""
    size = int(sys.argv[1])
    with socket.create_server(("", 0), backlog=size) as server:
        token = secrets.token_hex(16)
        print(server.getsockname()[1], token, flush=True)
        sys.stdout.close()
        os.close(1)
        return Hub(size, server, token).run()


if __name__ == "__main__":
    sys.exit(main())
