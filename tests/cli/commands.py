"""Runs ``order …`` commands as processes, with pipes or with a terminal as their standard error."""

import asyncio
import os
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

# A command on a terminal ends within a second or two, unless it waits for something that never comes.
TERMINAL_TIMEOUT_SECONDS = 30
ROWS = 24


@dataclass
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: bytes
    err: str


async def run_order(*arguments: str | Path, cwd: Path, **environment: str) -> CommandResult:
    """Run ``python -m service order …`` without a terminal."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "order", *map(str, arguments),
        cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], **environment},
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return CommandResult(process.returncode, out, err.decode())


async def run_order_on_terminal(
    *arguments: str | Path,
    cwd: Path,
    columns: int = 100,
    expected: str = "",
    then: Callable[[], None] = lambda: None,
    hang_up: bool = False,
) -> CommandResult:
    """Run ``order`` with a terminal as its standard error, and return what was drawn on it as ``err``.

    ``then`` is called when ``expected`` is drawn; with ``hang_up`` the terminal is closed at that moment.
    """
    leader, follower = os.openpty()
    termios.tcsetwinsize(follower, (ROWS, columns))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "order", *map(str, arguments),
        cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=follower,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    os.close(follower)
    loop = asyncio.get_running_loop()
    drawn = asyncio.create_task(
        asyncio.to_thread(_read_terminal, leader, expected, lambda: loop.call_soon_threadsafe(then), hang_up=hang_up)
    )
    try:
        async with asyncio.timeout(TERMINAL_TIMEOUT_SECONDS):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        pytest.fail(f"the command did not end; {await drawn!r}")
    assert process.returncode is not None
    return CommandResult(process.returncode, out, await drawn)


def _read_terminal(leader: int, expected: str, then: Callable[[], object], *, hang_up: bool) -> str:
    drawn = b""
    with os.fdopen(leader, "rb", buffering=0) as terminal, suppress(OSError):  # EIO is its end
        while chunk := terminal.read(65536):
            before, drawn = drawn, drawn + chunk
            if expected.encode() in drawn and expected.encode() not in before:
                if hang_up:
                    terminal.close()
                    then()
                    break
                then()
    return drawn.decode()
