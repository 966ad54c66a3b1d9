"""Asynchronous log writer: a bounded queue, one daemon thread, and a counter of dropped lines.

The event loop never waits for the reader of the log, and a stream error never reaches a request::

    write() ──▶ queue (QUEUE_LINES, QUEUE_BYTES) ──▶ thread ──▶ write(2)
                  └─ full: dropped, counted            └─ error: dropped, counted

The standard library's ``QueueListener`` does not fit: its ``stop`` has no timeout, and our events bypass its loggers.
"""

import os
import select
import threading
from collections import deque
from types import TracebackType
from typing import Final, Self

import structlog

# 4 MB at 400 bytes a line: the lines of some 100 orders of 100 images, while the reader of the log is stalled.
QUEUE_LINES: Final = 10_000
# Lines with tracebacks are long; this bounds all lines together.
QUEUE_BYTES: Final = 8 * 1024 * 1024
# Queued lines are written in batches of this size, the capacity of a pipe (pipe(7)).
BATCH_BYTES: Final = 64 * 1024
# Maximum wait for the last lines when the process ends.
FLUSH_SECONDS: Final = 1.0

# How long lines are gathered before they are written.
GATHER_SECONDS: Final = 0.01

_NEWLINE: Final = ord("\n")

log = structlog.get_logger(__name__)

_active: "LogWriter | None" = None


def dropped_lines() -> int:
    """Return the number of dropped lines of the process's log; 0 without a ``LogWriter``."""
    return _active.dropped if _active is not None else 0


class LogWriter:
    """A text stream whose ``write`` never blocks and never fails. Use it as a context manager.

    Entering starts the thread. Leaving writes the queued lines, within ``flush_seconds``. Lines keep their sequence.
    They are written to the file descriptor, not to ``sys.stdout``: the interpreter flushes its buffers at exit, and
    would block or fail there as the stream does.
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
        self._torn = False  # the last line of the stream is incomplete
        self._closed = False
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)

    @property
    def dropped(self) -> int:
        """Number of lines that were not written: the queue was full, or the stream failed."""
        return self._dropped

    def __enter__(self) -> Self:
        """Start the thread."""
        global _active  # noqa: PLW0603 - the log is the process's, as structlog's configuration is
        self._thread.start()
        _active = self
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the queued lines. A stalled stream does not delay the exit further: the thread is a daemon."""
        global _active  # noqa: PLW0603
        with self._changed:
            self._closed = True
            self._closing.set()
            self._changed.notify()
        self._thread.join(self._flush_seconds)
        _active = None

    def write(self, text: str) -> int:
        """Queue a line, or drop it if the queue is full; return its length, as ``TextIO.write`` does."""
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            full = len(self._lines) >= self._max_lines or self._queued_bytes + len(line) > self._max_bytes
            # The thread's own warning, at most one per batch, is always queued.
            if (full or self._closed) and threading.current_thread() is not self._thread:
                self._dropped += 1
            else:
                self._lines.append(line)
                self._queued_bytes += len(line)
                if len(self._lines) == 1:  # with more, the thread is awake
                    self._changed.notify()
        return len(text)

    def flush(self) -> None:
        """Do nothing: lines are written by the thread."""

    def _run(self) -> None:
        while batch := self._next_batch():
            unwritten = self._write_batch(batch)
            if unwritten:
                with self._changed:
                    self._dropped += unwritten
            elif self._dropped > self._reported:
                lines, self._reported = self._dropped - self._reported, self._dropped
                log.warning("log.lines_dropped", lines=lines)

    def _write_batch(self, batch: list[bytes]) -> int:
        """Write the lines; return the number of those that were not written completely."""
        start = b"\n" if self._torn else b""  # the incomplete line stays on its own
        rest = memoryview(start + b"".join(batch))
        while rest:
            try:
                written = os.write(self._descriptor, rest)
            except BlockingIOError:  # the descriptor is shared with a process that made it non-blocking
                select.select([], [self._descriptor], [])
                continue
            except OSError:  # no reader, no space: the next batch retries
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

    def _next_batch(self) -> list[bytes]:
        """Wait for lines and dequeue a batch; an empty batch is the end."""
        batch: list[bytes] = []
        size = 0
        with self._changed:
            while not self._lines and not self._closed:
                self._changed.wait()
        # Each write takes the interpreter from the event loop: lines of the same moment share one.
        self._closing.wait(GATHER_SECONDS)
        with self._changed:
            while self._lines and (not batch or size + len(self._lines[0]) <= BATCH_BYTES):
                batch.append(self._lines.popleft())
                size += len(batch[-1])
            self._queued_bytes -= size
        return batch
