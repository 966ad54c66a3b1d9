"""How far a transfer is, as one line on standard error, if that is a terminal. In a pipe nothing is written.

A transfer never fails by its display: what cannot be shown, or not be known, is left out.
"""

import asyncio
import itertools
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Self

import click

from service.cli.service_client import Service

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

# Often enough to look alive; a terminal that is far away gets no more than this.
REDRAW_SECONDS = 0.2
# The receipt's last word comes a moment after the last byte; the display is not worth more than this.
LAST_WORD_SECONDS = 1.0
MIB = 1024 * 1024

_WITH_BAR, _WITHOUT_BAR = "%(label)s [%(bar)s] %(info)s", "%(label)s %(info)s"


class _Line:
    """A progress bar that is drawn now and then, and given up where it cannot be written."""

    def __init__(self, bar: "ProgressBar[Any]") -> None:
        self.bar = bar
        self._drawn = self._since = time.monotonic()

    def __enter__(self) -> Self:
        self._write(self.bar.__enter__)
        return self

    def __exit__(self, *_: object) -> None:
        self.draw()
        self._write(self.bar.render_finish)

    def draw(self) -> None:
        self._drawn = time.monotonic()
        self._write(self.bar.render_progress)

    def draw_now_and_then(self) -> None:
        if time.monotonic() - self._drawn >= REDRAW_SECONDS:
            self.draw()

    def speed(self, number: int) -> str:
        return f"{number / MIB / max(0.001, time.monotonic() - self._since):.1f} MiB/s"

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError:  # the terminal has gone
            self.bar.hidden = True


@contextmanager
def sending(total: int) -> Iterator[Callable[[int], None]]:
    """Show how much of ``total`` bytes is sent; yields what is told the number of new ones."""

    def amount(_: object) -> str:
        return f"{line.bar.pos / MIB:.1f} of {total / MIB:.1f} MiB, {line.speed(line.bar.pos)}"

    def advance(number: int) -> None:
        line.bar.make_step(number)
        line.draw_now_and_then()

    line = _Line(click.progressbar(length=total, **_look("sending", _WITH_BAR, amount)))
    with line:
        yield advance


class Receiving:
    """How far one download is: by images as long as its receipt can be had, and always by bytes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._archive_id = str(uuid.uuid4())
        self._bytes = 0
        self._following: asyncio.Task[None] | None = None
        self._line = _Line(click.progressbar(itertools.count(), **_look("receiving", _WITHOUT_BAR, self._amount)))

    @property
    def query(self) -> Sequence[tuple[str, str]]:
        """The parameter by which the download is found again: none, if there is nobody to see it."""
        return () if self._line.bar.hidden else (("archive_id", self._archive_id),)

    def begun(self) -> None:
        """Note that the archive is on its way: from now on its receipt says how far it is."""
        if not self._line.bar.hidden:
            self._following = asyncio.create_task(self._follow())

    def received(self, number: int) -> None:
        """Note that so many bytes came."""
        self._bytes += number
        self._line.draw_now_and_then()

    @asynccontextmanager
    async def shown(self) -> AsyncIterator["Receiving"]:
        """Show it while the context is open."""
        whole = False
        with self._line:
            try:
                yield self
                whole = True
            finally:
                if self._following is not None:
                    await self._end(self._following, LAST_WORD_SECONDS if whole else 0)

    async def _end(self, following: asyncio.Task[None], patience_seconds: float) -> None:
        await asyncio.wait([following], timeout=patience_seconds)
        following.cancel()
        await asyncio.wait([following])
        if not following.cancelled():
            following.exception()  # whatever it is, the archive does not depend on it

    async def _follow(self) -> None:
        done = total = 0
        async for done, total in self._service.progress(self._archive_id):
            self._count(done, total)
        if not total or done < total:  # the receipt cannot be had, or not to its end
            self._line.bar.length, self._line.bar.bar_template = None, _WITHOUT_BAR

    def _count(self, done: int, total: int) -> None:
        bar = self._line.bar
        bar.length, bar.bar_template = total, _WITH_BAR
        bar.make_step(done - bar.pos)
        bar.finished = done >= total  # more images may appear later
        self._line.draw()  # events are few: the service gathers them

    def _amount(self, _: object) -> str:
        bar = self._line.bar
        images = f"{bar.pos} of {bar.length} images, " if bar.length is not None else ""
        return f"{images}{self._bytes / MIB:.1f} MiB, {self._line.speed(self._bytes)}"


def _look(label: str, template: str, amount: Callable[[object], str]) -> dict[str, Any]:
    # width 0: the bar takes what the rest leaves of the terminal's line.
    return {
        "label": label, "bar_template": template, "item_show_func": amount, "width": 0,
        "file": sys.stderr, "hidden": not sys.stderr.isatty(),
    }  # fmt: skip
