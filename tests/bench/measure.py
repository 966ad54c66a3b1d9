"""CPU and memory of server processes during real downloads."""

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

GIB = 1024**3
MIB = 1024**2
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Transfer:
    """The times of one download at its client, and the CPU time of the server."""

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
        """Return ``VmRSS`` (current) or ``VmHWM`` (peak)."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"{field}:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else 0


@asynccontextmanager
async def server_process(arguments: Sequence[str], environment: dict[str, str] | None = None) -> AsyncIterator[Server]:
    """Start ``python ARGUMENTS``, wait for the address that it prints, and end it afterwards.

    Its output goes to a file: the reader of a pipe would use CPU time during the measurement.
    """
    with tempfile.TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=output, env={**os.environ, **(environment or {})}
        )
        try:
            yield Server(await _address(process, output.fileno()), process.pid)
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()


async def _address(process: asyncio.subprocess.Process, output: int) -> str:
    while process.returncode is None:
        found = re.search(rb"http://127\.0\.0\.1:\d+/?", os.pread(output, 64 * 1024, 0))
        if found:
            return found[0].decode("ascii")
        await asyncio.sleep(POLL_SECONDS)
    raise RuntimeError("the server ended before it listened")


async def fetch(server: Server, path: str = "", *curl_options: str) -> Transfer:
    """Download with curl, in a separate process, and discard the bytes.

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
