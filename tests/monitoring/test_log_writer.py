"""The log's stream stalls, fails or goes away: downloads, health and the end of the process do not notice."""

import asyncio
import fcntl
import io
import json
import logging
import os
import socket
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass

import aiohttp
import pytest
import structlog

from service.monitoring.log_writer import LogWriter
from service.monitoring.logs import configure_logs, stderr_captured
from service.sandbox import DEMO_ORDER_ID
from tests.archives import entries, images_url
from tests.monitoring.test_metrics import Scrape

# The least that the kernel gives a pipe (fcntl(2), F_SETPIPE_SZ).
PIPE_BYTES = 4096
# A hang is a failure; on a busy machine the whole takes about 3 s.
LIMIT_SECONDS = 60
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sets the size of a pipe")


@dataclass
class Pipe:
    """A small pipe; each end is closed once."""

    reading: io.FileIO
    writing: io.FileIO

    def read_all(self) -> bytes:
        """Close the writing end, and return what is in the pipe."""
        self.writing.close()
        return self.reading.readall()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe of the least size."""
    reading, writing = os.pipe()
    with io.FileIO(reading) as out, io.FileIO(writing, "w") as into:
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        yield Pipe(out, into)


@pytest.fixture(autouse=True)
def _restored_logs() -> Iterator[None]:
    """After the test the logs are as they were."""
    root, zipstream = logging.getLogger(), logging.getLogger("zipstream.ng")
    before = root.handlers, root.level, zipstream.level
    yield
    root.handlers = before[0]
    root.setLevel(before[1])
    zipstream.setLevel(before[2])
    structlog.reset_defaults()


@contextmanager
def written_log(pipe: Pipe, **bounds: float) -> Iterator[LogWriter]:
    """Send the log to a pipe by way of a writer."""
    with LogWriter(pipe.writing.fileno(), **bounds) as writer:  # type: ignore[arg-type]
        configure_logs(log_format="json", level="info", stream=writer)
        yield writer


def numbers(text: bytes) -> list[int]:
    """Return the numbers of the events in a log."""
    parsed = [json.loads(line) for line in text.splitlines()]
    return [line["number"] for line in parsed if line["event"] == "test.event"]


def test_lines_keep_their_order(pipe: Pipe) -> None:
    """What structlog and the standard library log is written in one order, and is whole when the writer is left."""
    log, library = structlog.get_logger("service.test"), logging.getLogger("other")
    with written_log(pipe) as writer:
        for number in range(0, 8, 2):
            log.info("test.event", number=number)
            library.info("%d", number + 1)
    found = [json.loads(line) for line in pipe.read_all().splitlines()]
    assert [line.get("number", line["event"]) for line in found] == [0, "1", 2, "3", 4, "5", 6, "7"]
    assert writer.dropped == 0


@linux_only
@pytest.mark.parametrize("bound", [{"max_lines": 20}, {"max_bytes": 2000}], ids=["lines", "bytes"])
def test_stalled_reader(bound: dict[str, int], pipe: Pipe) -> None:
    """A full queue drops lines and counts them; after the stall the log goes on in order, and says how many."""
    received = bytearray()

    def read() -> None:
        while data := pipe.reading.read(PIPE_BYTES):
            received.extend(data)
            if b"log.lines_dropped" in received:
                reported.set()

    reported = threading.Event()
    reader = threading.Thread(target=read)
    with written_log(pipe, flush_seconds=LIMIT_SECONDS, **bound) as writer:
        for number in range(2000):
            structlog.get_logger("service.test").info("test.event", number=number)
        dropped = writer.dropped
        assert dropped > 0
        reader.start()
        assert reported.wait(LIMIT_SECONDS)
    pipe.writing.close()
    reader.join()
    found = numbers(bytes(received))
    assert found == sorted(found)
    assert len(found) + dropped == 2000
    reports = [json.loads(line) for line in received.splitlines() if b"log.lines_dropped" in line]
    assert sum(line["lines"] for line in reports) == dropped


def test_failing_stream(pipe: Pipe) -> None:
    """Without a reader each line is dropped and counted, and logging raises nothing."""
    pipe.reading.close()
    with written_log(pipe) as writer:
        for number in range(10):
            structlog.get_logger("service.test").info("test.event", number=number)
            logging.getLogger("other").error("broken")
    assert writer.dropped == 20


@linux_only
def test_end_does_not_wait_for_a_stalled_reader(pipe: Pipe) -> None:
    """Leaving the writer is bounded, whatever the reader does."""
    with LogWriter(pipe.writing.fileno(), flush_seconds=0) as writer:
        for number in range(2000):
            writer.write(f"line {number}\n")
    assert len(pipe.reading.read(PIPE_BYTES) or b"") > 0
    pipe.reading.close()  # what is still being written fails, and the thread ends
    for thread in threading.enumerate():
        if thread.name == "log-writer":
            thread.join(LIMIT_SECONDS)
            assert not thread.is_alive()


def test_what_python_reports_is_logged(pipe: Pipe, capfd: pytest.CaptureFixture[str]) -> None:
    """Warnings, errors in finalizers and unreadable records go the way of all lines, not to standard error."""

    class Broken:
        def __del__(self) -> None:
            raise RuntimeError("a finalizer fails")

    with written_log(pipe), stderr_captured():
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("a warning", stacklevel=1)
        Broken()
        logging.getLogger("other").error("%d", "no number")
    text = pipe.read_all().decode()
    assert "a warning" in text
    assert "python.unraisable" in text
    assert "a finalizer fails" in text
    assert "log.record_unreadable" in text
    assert capfd.readouterr().err == ""


# The whole process.


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is held for the service: others get another one, and it can listen there."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@asynccontextmanager
async def sandboxed_service(port: int, output: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start ``python -m service serve --sandbox`` with this descriptor for its output, and wait until it listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "serve", "--sandbox", "--host", "127.0.0.1", "--port", str(port),
        stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
        env={"PATH": os.environ["PATH"], "LOG_LEVEL": "debug"},
    )  # fmt: skip
    try:
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                continue
            writer.close()
            break
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@contextmanager
def closed_pipe() -> Iterator[int]:
    """A pipe without a reader."""
    reading, writing = os.pipe()
    os.close(reading)
    with io.FileIO(writing, "w") as into:
        yield into.fileno()


@contextmanager
def full_pipe() -> Iterator[int]:
    """A pipe that is full, and whose reader reads nothing."""
    reading, writing = os.pipe()
    with io.FileIO(reading), io.FileIO(writing, "w") as into:
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        into.write(bytes(PIPE_BYTES))
        yield into.fileno()


@contextmanager
def full_disk() -> Iterator[int]:
    """A device without space (full(4))."""
    with io.FileIO("/dev/full", "w") as into:
        yield into.fileno()


@linux_only
@pytest.mark.parametrize("output", [closed_pipe, full_pipe, full_disk], ids=lambda output: output.__name__)
async def test_downloads_go_on(
    output: Callable[[], AbstractContextManager[int]], port: int, client: aiohttp.ClientSession
) -> None:
    """Archives are whole and health is well, lines that cannot be written are counted, SIGTERM ends with 0."""
    url = f"http://127.0.0.1:{port}"
    async with asyncio.timeout(LIMIT_SECONDS):
        with output() as descriptor:
            async with sandboxed_service(port, descriptor) as process:
                for _ in range(3):
                    async with client.get(images_url(url, DEMO_ORDER_ID)) as response:
                        assert len(entries(await response.read())) == 14
                async with client.get(f"{url}/health") as response:
                    assert response.status == 200
                async with client.get(f"{url}/metrics") as response:
                    dropped = Scrape(await response.text())("batch_log_lines_dropped_total")
                process.terminate()
                assert await process.wait() == 0
    # A stalled reader drops nothing as long as the queue has room.
    assert (dropped > 0) is (output is not full_pipe)
