"""Progress bars (tqdm) on standard error, drawn only if that is a terminal.

The display never fails a transfer: what cannot be drawn, or is not known, is left out.
"""

import asyncio
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from tqdm import tqdm

from service.cli.service_client import ServiceClient

REDRAW_SECONDS = 0.2
# The last event of a receipt follows the last byte of the archive; the command waits for it no longer than this.
FINAL_EVENT_TIMEOUT_SECONDS = 1.0
MIB = 1024 * 1024

# A bar in both, because tqdm cuts only lines with a bar to the width of the terminal. Without a total it is blank.
_BYTES_ONLY = "{desc}{postfix}{bar}"
_IMAGES_AND_BYTES = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} images{postfix}"


if TYPE_CHECKING:
    _Tqdm = tqdm[NoReturn]  # generic in its type stubs only
else:
    _Tqdm = tqdm


class _Bar(_Tqdm):
    """A tqdm bar that one thread draws, and that stops drawing when its terminal is gone."""

    monitor_interval = 0  # no monitor thread: every chunk calls update()

    def __init__(self, label: str, **options: Any) -> None:
        super().__init__(
            desc=label, file=sys.stderr, disable=None, dynamic_ncols=True,
            mininterval=REDRAW_SECONDS, miniters=0, **options,
        )  # fmt: skip

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or disable it if the terminal cannot be written."""
        try:
            super().display(msg, pos)
        except OSError:
            self.disable = True

    def close(self) -> None:
        """Draw the bar for the last time and end its line."""
        with suppress(OSError):
            super().close()


# The default lock also locks between processes, for which some Python versions start another process.
_Bar.set_lock(threading.RLock())


@contextmanager
def upload_progress(total_bytes: int) -> Iterator[Callable[[int], object]]:
    """Show how much of an upload is sent; yields the function that adds a number of sent bytes."""
    with _Bar("sending", total=total_bytes, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        yield bar.update


class DownloadProgress:
    """Shows a download's bytes, and its finished images while the events of its receipt can be read.

    Use it as an async context manager around the download.
    """

    def __init__(self, service: ServiceClient) -> None:
        self._service = service
        self._archive_id = str(uuid.uuid4())
        self._bytes = 0
        self._started = time.monotonic()
        self._watcher: asyncio.Task[None] | None = None
        self._bar = _Bar("receiving", bar_format=_BYTES_ONLY)

    @property
    def query(self) -> Sequence[tuple[str, str]]:
        """The parameter that lets the receipt of the download be found; none if nothing is drawn."""
        return () if self._bar.disable else (("archive_id", self._archive_id),)

    def response_started(self) -> None:
        """Start to read the events of the receipt, which exists from now on."""
        if not self._bar.disable:
            self._watcher = asyncio.create_task(self._watch())

    def add_bytes(self, count: int) -> None:
        """Add received bytes; draw at most every ``REDRAW_SECONDS``."""
        self._bytes += count
        speed = self._bytes / max(0.001, time.monotonic() - self._started)
        self._bar.set_postfix_str(f"{self._bytes / MIB:.1f} MiB, {speed / MIB:.1f} MiB/s", refresh=False)
        self._bar.update(0)

    async def __aenter__(self) -> Self:
        """Return self; the bar is drawn already."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop reading events, after the last one if the download was complete, and draw the final state."""
        if self._watcher is not None:
            await asyncio.wait([self._watcher], timeout=FINAL_EVENT_TIMEOUT_SECONDS if exc_type is None else 0)
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
            if not self._watcher.cancelled():
                self._watcher.exception()  # retrieved and dropped: the archive does not depend on the events
        self._bar.close()

    async def _watch(self) -> None:
        done = total = 0
        async for done, total in self._service.progress(self._archive_id):
            self._bar.n, self._bar.total, self._bar.bar_format = done, total, _IMAGES_AND_BYTES
            self._bar.refresh()  # events are few: the service coalesces them
        if not total or done < total:  # the events are not available, or ended early
            self._bar.n, self._bar.total, self._bar.bar_format = 0, None, _BYTES_ONLY
