"""Processes under measurement: what they take of CPU and memory while real clients download from them."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

GIB = 1024**3
MIB = 1024**2


@dataclass(frozen=True)
class Transfer:
    """One download as its client saw it, and what it took of the server."""

    seconds: float
    first_byte_seconds: float
    transferred_bytes: int
    cpu_seconds: float

    @property
    def bytes_per_second(self) -> float:
        """The speed."""
        return self.transferred_bytes / self.seconds

    @property
    def cpu_seconds_per_gib(self) -> float:
        """CPU seconds of the whole server process for each GiB."""
        return self.cpu_seconds / (self.transferred_bytes / GIB)


@dataclass
class Server:
    """A server process and its address."""

    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """Return the time that the process's threads have run so far (proc(5), schedstat: in nanoseconds)."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text(encoding="ascii").split()[0]) for thread in threads) / 1e9

    def memory_bytes(self, field: str) -> int:
        """Return ``VmRSS`` (now) or ``VmHWM`` (the most so far)."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"{field}:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else 0


@asynccontextmanager
async def server_process(arguments: Sequence[str], environment: dict[str, str] | None = None) -> AsyncIterator[Server]:
    """Start ``python ARGUMENTS``, wait for the address in its first line that has one, and end it afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, env={**os.environ, **(environment or {})}
    )
    assert process.stdout is not None
    stdout = process.stdout
    url = None
    while url is None:
        line = (await stdout.readline()).decode()
        if not line:
            raise RuntimeError("the server ended before it listened")
        url = re.search(r"http://127\.0\.0\.1:\d+/?", line)
    drain = asyncio.create_task(stdout.read())
    try:
        yield Server(url[0], process.pid)
    finally:
        process.terminate()
        await process.wait()
        await drain


async def fetch(server: Server, path: str = "", *curl_options: str) -> Transfer:
    """Download with curl, a client process of its own, and throw the bytes away.

    Raises:
        RuntimeError: the transfer failed or did not end cleanly.
    """
    before = server.cpu_seconds()
    curl = await asyncio.create_subprocess_exec(
        "curl", "-sSf", "-o", os.devnull, "-w", "%{time_total} %{time_starttransfer} %{size_download}",
        *curl_options, server.url.rstrip("/") + "/" + path,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await curl.communicate()
    if curl.returncode != 0:
        raise RuntimeError(f"curl exited {curl.returncode}")
    seconds, first_byte_seconds, transferred = output.decode().split()
    cpu_seconds = server.cpu_seconds() - before
    return Transfer(float(seconds), float(first_byte_seconds), int(transferred), cpu_seconds)
