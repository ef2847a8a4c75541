# SPDX-License-Identifier: GPL-3.0-or-later
"""A rank's connection to the hub, by which all ranks end when one of them does: see :mod:`.hub`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsecv.engine.ranks.hub import FAILED

CONNECT = 60.0  # s
PATIENCE = 15.0  # s: a rank that has failed waits so long for the word to end


class Watch:
    """The connection, and the thread that ends this process when the hub says so.

    Parameters
    ----------
    rank, size
        Of this process.
    share
        Gives every rank what the root has put in (a broadcast).
    """

    def __init__(self, rank: int, size: int, share: Callable[[Any], Any]) -> None:
        address = _start_hub(size) if rank == 0 else None
        host, port, token = share(address)
        here = socket.gethostname()
        self._link = socket.create_connection(("localhost" if host == here else host, port), timeout=CONNECT)
        self._link.settimeout(None)
        self._tell(f"HELLO {token} {rank} {here}")
        self._is_closing = False
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def report_to(self, status_file: Path) -> None:
        """Have the hub put the reason there, should this process not be able to."""
        self._tell("STATUS " + json.dumps(str(status_file.resolve())))

    def fail(self, status: int, line: str) -> None:
        """End the process, and with it all others, because of a failure here; never returns.

        Parameters
        ----------
        status
            Exit status of the whole run.
        line
            What went wrong, for the hub to print.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        self._tell("FAIL " + json.dumps([status, line]))
        threading.Event().wait(PATIENCE)  # the watching thread ends the process before
        os._exit(status)

    def close(self) -> None:
        """Part in peace: from here on, the end of another rank is no failure."""
        self._is_closing = True
        self._tell("BYE")

    def _tell(self, line: str) -> None:
        try:
            self._link.sendall(line.encode() + b"\n")
        except OSError:  # there is no hub any more; nothing is watched then, and all goes on
            pass

    def _run(self) -> None:
        heard = b""
        while not heard.endswith(b"\n"):
            try:
                data = self._link.recv(4096)
            except OSError:
                data = b""
            if not data:
                return
            heard += data
        word, _, status = heard.decode(errors="replace").strip().partition(" ")
        if word == "END" and not self._is_closing:
            sys.stdout.flush()
            # at once: at a regular end MPI would wait for the others
            os._exit(int(status) if status.isdigit() else FAILED)


def _start_hub(size: int) -> tuple[str, int, str]:
    """Start the hub in a session of its own, so that signals for this process do not end it, too."""
    command = [sys.executable, "-m", "sparsecv.engine.ranks.hub", str(size)]
    hub = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, text=True)
    assert hub.stdout is not None
    port, token = hub.stdout.readline().split()
    return socket.gethostname(), int(port), token
