# SPDX-License-Identifier: GPL-3.0-or-later
"""Images read ahead on the CPU: see :func:`.reference.prefetched`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


def prefetched(
    read: Callable[[np.ndarray], np.ndarray], batches: Sequence[np.ndarray], shape: tuple[int, ...]
) -> Iterator[Any]:
    """Batches of images, the next one read by a thread meanwhile: see :func:`.reference.prefetched`."""
    if not batches:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
        waiting = reader.submit(read, batches[0])
        for number in range(len(batches)):
            images = waiting.result()
            if number + 1 < len(batches):
                waiting = reader.submit(read, batches[number + 1])
            yield images
