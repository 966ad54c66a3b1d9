"""Writes the log's lines off the event loop: a bounded queue, one daemon thread, and a count of what was dropped.

The loop never waits for the reader of the log, and no error of its stream reaches a request::

    write() ──▶ queue (QUEUE_LINES, QUEUE_BYTES) ──▶ thread ──▶ write(2)
                  └─ full: dropped, counted            └─ error: dropped, counted

The standard library's ``QueueListener`` does not fit: its ``stop`` waits without a bound, and our events do not pass
through its loggers.
"""

import os
import select
import threading
from collections import deque
from types import TracebackType
from typing import Final, Self

import structlog

# At 400 bytes a line this is 4 MB: what some 100 orders of 100 images log while a reader is away.
QUEUE_LINES: Final = 10_000
# Lines with tracebacks are long; in sum they hold no more than this.
QUEUE_BYTES: Final = 8 * 1024 * 1024
# Lines that wait are written together until they come to this: a pipe holds as much (pipe(7)).
BATCH_BYTES: Final = 64 * 1024
# How long the end of the process waits for the last lines to be written.
FLUSH_SECONDS: Final = 1.0

_NEWLINE: Final = ord("\n")

log = structlog.get_logger(__name__)

_active: "LogWriter | None" = None


def dropped_lines() -> int:
    """Return how many lines of the process's log were dropped; 0 if they are written without a queue."""
    return _active.dropped if _active is not None else 0


class LogWriter:
    """A stream of text that never blocks and never fails; use it as a context manager.

    Entering it starts the thread. Leaving it writes what is queued, for ``flush_seconds`` at most. Lines keep their
    order. They are written to the file descriptor, past the buffers of ``sys.stdout``: those would be flushed once more
    at the exit of the interpreter, which then blocks or fails as the stream does.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        max_lines: int = QUEUE_LINES,
        max_bytes: int = QUEUE_BYTES,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self._descriptor = descriptor
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._flush_seconds = flush_seconds
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0
        self._dropped = 0
        self._reported = 0
        self._torn = False  # the stream ends in the middle of a line
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)

    @property
    def dropped(self) -> int:
        """The lines that were not written: the queue was full, or the stream failed."""
        return self._dropped

    def __enter__(self) -> Self:
        """Start the thread."""
        global _active  # noqa: PLW0603 - the log is the process's, as structlog's configuration is
        self._thread.start()
        _active = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is queued. A stalled stream does not hold the exit any longer: the thread is a daemon."""
        global _active  # noqa: PLW0603
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(self._flush_seconds)
        _active = None

    def write(self, text: str) -> int:
        """Queue a line, or drop it if the queue is full; returns its length, as every stream does."""
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            full = len(self._lines) >= self._max_lines or self._queued_bytes + len(line) > self._max_bytes
            # The thread's own report, one for each batch at most, always finds room.
            if (full or self._closed) and threading.current_thread() is not self._thread:
                self._dropped += 1
            else:
                self._lines.append(line)
                self._queued_bytes += len(line)
                self._changed.notify()
        return len(text)

    def flush(self) -> None:
        """Do nothing: no caller waits for the stream."""

    def _run(self) -> None:
        while batch := self._take():
            unwritten = self._write_batch(batch)
            if unwritten:
                with self._changed:
                    self._dropped += unwritten
            elif self._dropped > self._reported:
                lines, self._reported = self._dropped - self._reported, self._dropped
                log.warning("log.lines_dropped", lines=lines)

    def _write_batch(self, batch: list[bytes]) -> int:
        """Write the lines; return how many of them did not get through whole."""
        start = b"\n" if self._torn else b""  # what was cut off stays a line of its own
        rest = memoryview(start + b"".join(batch))
        while rest:
            try:
                written = os.write(self._descriptor, rest)
            except BlockingIOError:  # the descriptor is shared with a process that made it non-blocking
                select.select([], [self._descriptor], [])
                continue
            except OSError:  # no reader, no space: the next lines try again
                break
            self._torn = rest[written - 1] != _NEWLINE
            rest = rest[written:]
        unwritten_bytes, unwritten = len(rest), 0
        for line in reversed(batch):
            if unwritten_bytes <= 0:
                break
            unwritten_bytes -= len(line)
            unwritten += 1
        return unwritten

    def _take(self) -> list[bytes]:
        """Wait for lines and take the first of them; none is the end."""
        batch: list[bytes] = []
        size = 0
        with self._changed:
            while not self._lines and not self._closed:
                self._changed.wait()
            while self._lines and (not batch or size + len(self._lines[0]) <= BATCH_BYTES):
                batch.append(self._lines.popleft())
                size += len(batch[-1])
            self._queued_bytes -= size
        return batch
