"""Downloads that push what a test scripts, a budget that remembers its extremes, and an output in memory."""

import asyncio
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.archive.writer import Parts
from service.model import Failure, Opened, Reason
from service.streaming.budgets import MemoryBudget
from service.streaming.interfaces import PlannedSlot
from service.upstream.image_download import ImageSink

LOST = Failure(Reason.CONNECTION_LOST, "the connection broke")


@dataclass(frozen=True)
class Interrupted:
    """The end of an attempt; another follows."""

    failure: Failure = LOST


class Complete:
    """The end of an image."""


COMPLETE = Complete()
NEVER = asyncio.sleep  # a step that never ends
Event = Opened | bytes | Interrupted | Complete | Failure | BaseException


async def turns(number: int = 20) -> None:
    """Let the event loop run this many iterations."""
    for _ in range(number):
        await asyncio.sleep(0)


class PushedImage:
    """Calls a sink as ``ImageDownload`` does, with the running CRC-32 of the copy."""

    def __init__(self, sink: ImageSink) -> None:
        self._sink = sink
        self._size = 0
        self._crc32 = 0

    def push(self, event: Event) -> None:
        """Call the sink."""
        if isinstance(event, Opened):
            self._size = self._crc32 = 0
            self._sink.image_opened(event)
        elif isinstance(event, bytes):
            self._size += len(event)
            self._crc32 = zlib.crc32(event, self._crc32)
            self._sink.image_received(event, self._crc32)
        elif isinstance(event, Interrupted):
            self._sink.image_interrupted(event.failure)
        elif isinstance(event, Failure):
            self._sink.image_failed(event)
        elif isinstance(event, Complete):
            self._sink.image_completed(self._size, self._crc32)
        else:
            self._sink.image_crashed(event)


class FedDownload:
    """Pushes what the test gives it at once, or in the iteration after it is resumed.

    ``pushed`` counts the events that the sink has. ``together`` ignores the pause: bytes that were read with those
    before them.
    """

    def __init__(self, sink: ImageSink) -> None:
        self.attempts = 1
        self.pushed = 0
        self.is_started = self.is_paused = self.is_ended = self.is_aborted = False
        self._image = PushedImage(sink)
        self._given: deque[Event] = deque()

    @property
    def is_running(self) -> bool:
        """Whether it was started, and has neither ended nor been aborted."""
        return self.is_started and not self.is_ended and not self.is_aborted

    def give(self, *events: Event) -> None:
        """Push these next."""
        self._given += events
        self._push()

    def give_together(self, *events: Event) -> None:
        """Push all of these, though the sink pauses the download meanwhile."""
        for event in events:
            self._push_one(event)

    def end(self, error: Failure | BaseException | None = None) -> None:
        """End completely, or with an error."""
        self.give(COMPLETE if error is None else error)

    def reconnect(self) -> None:
        """Begin a new attempt, which reads until it is paused again."""
        self.attempts += 1
        self.is_paused = False
        self._push()

    def start(self) -> None:
        """Begin."""
        assert not self.is_started
        self.is_started = True

    def pause(self) -> None:
        """Push nothing until ``resume``."""
        self.is_paused = True

    def resume(self) -> None:
        """Go on."""
        self.is_paused = False
        asyncio.get_running_loop().call_soon(self._push)

    def abort(self) -> None:
        """Push nothing more."""
        self.is_aborted = True

    def _push(self) -> None:
        while self._given and self.is_running and not self.is_paused:
            self._push_one(self._given.popleft())

    def _push_one(self, event: Event) -> None:
        self.pushed += 1
        self.is_ended = isinstance(event, Complete | Failure | BaseException)
        self._image.push(event)


class ScriptedDownload:
    """Plays a script: events, numbers of loop iterations to wait, gates (``asyncio.Event``), or ``NEVER``."""

    def __init__(self, sink: ImageSink, script: Iterable[object], on_end: Callable[[], None] = lambda: None) -> None:
        self.attempts = 0
        self.is_over = False
        self._image = PushedImage(sink)
        self._script = script
        self._on_end = on_end
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self.attempts = 1
        self._task = asyncio.create_task(self._play())

    def pause(self) -> None:
        """Push nothing until ``resume``."""
        self._may_read.clear()

    def resume(self) -> None:
        """Go on."""
        self._may_read.set()

    def abort(self) -> None:
        """Push nothing more."""
        if self._task is not None:
            self._task.cancel()
        self._end()

    def _end(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._on_end()

    async def _play(self) -> None:
        for step in self._script:
            await self._may_read.wait()
            if step is NEVER:
                await asyncio.Event().wait()
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, int):
                await turns(step)
            elif isinstance(step, Opened | bytes | Interrupted):
                self.attempts += isinstance(step, Interrupted)
                self._image.push(step)
            elif isinstance(step, Failure | BaseException):
                self._end()
                self._image.push(step)
                return
        self._end()
        self._image.push(COMPLETE)


@dataclass
class ScriptedSource:
    """Images as scripts, by id. Each is granted when its download starts."""

    scripts: Mapping[str, Sequence[object]]
    opened: dict[str, ScriptedDownload] = field(default_factory=dict)

    def download(self, image_id: str, sink: PlannedSlot, granted: Callable[[], None] | None = None) -> ScriptedDownload:
        """Return the image's download."""
        if granted is not None:
            granted()
        self.opened[image_id] = ScriptedDownload(sink, self.scripts[image_id])
        return self.opened[image_id]


class CheckedBudget(MemoryBudget):
    """A budget that remembers the extremes of what it held."""

    def __init__(self, limit_bytes: int) -> None:
        self.extremes = {0}
        super().__init__(limit_bytes)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "held_bytes":
            self.extremes |= {value}

    def check(self) -> None:
        """Assert that everything was returned, nothing waits, and the limit was never exceeded."""
        assert self.held_bytes == 0
        assert self.queue_length == 0
        assert min(self.extremes) == 0
        assert max(self.extremes) <= self.limit_bytes


class MemoryOutput:
    """Collects what is sent; ``has_room`` returns whether more may follow."""

    def __init__(self, has_room: Callable[[], bool] = lambda: True) -> None:
        self.pieces: list[bytes] = []
        self.on_sent: Callable[[], None] = lambda: None
        self._has_room = has_room
        self._on_writable: Callable[[], None] = lambda: None
        self._on_failed: Callable[[BaseException], None] = lambda _error: None

    @property
    def data(self) -> bytes:
        """Everything that was sent."""
        return b"".join(self.pieces)

    def send(self, parts: Parts) -> bool:
        """Take bytes."""
        self.pieces += map(bytes, parts)
        self.on_sent()
        return self._has_room()

    def flush(self) -> None:
        """Do nothing: nothing is gathered."""

    def attach(self, on_writable: Callable[[], None], on_failed: Callable[[BaseException], None]) -> None:
        """Set the callbacks."""
        self._on_writable, self._on_failed = on_writable, on_failed

    def resume(self) -> None:
        """Report that more may follow."""
        self._on_writable()

    def fail(self, error: BaseException) -> None:
        """Report that nothing can be sent any more."""
        self._on_failed(error)
