"""Demo: downloads the demo order with curl, as a user would, and checks every byte of the archive."""

import asyncio
import shutil
import sys
import zipfile
from pathlib import Path

from service.sandbox.orders import DEMO_ORDER_ID
from service.sandbox.server import Sandbox

TRAILER_NAMES = ("x-downloaded", "x-failed")


class DemoFailed(Exception):
    """The demo failed; the message says why."""


async def run_demo(url: str, sandbox: Sandbox, output: Path) -> None:
    """Download the demo order from the service at ``url`` into ``output``, and print what arrived.

    Raises:
        DemoFailed: curl is missing or failed, or the archive differs from what the sandbox serves.
    """
    if shutil.which("curl") is None:
        raise DemoFailed("curl is needed: apt-get install curl")
    await _download(f"{url}/orders/{DEMO_ORDER_ID}/images", output)
    _say(f"\nThe entries of {output}, tested one by one:\n")
    await _show(sys.executable, "-m", "zipfile", "-l", str(output))
    if shutil.which("unzip") is not None:
        await _show("unzip", "-tq", str(output))
    _compare(sandbox, output)
    _say(f"Every image is there, byte for byte as the sandbox served it: {output}")


async def _download(address: str, output: Path) -> None:
    headers = output.with_name(output.name + ".headers")
    command = ("curl", "--fail-with-body", "--silent", "--show-error", "-D", str(headers), "-o", str(output), address)
    try:
        await _show(*command)
        lines = headers.read_text(encoding="latin-1").splitlines()
    finally:
        headers.unlink(missing_ok=True)
    _say("\n".join(line for line in lines if line))
    trailers = [line.lower() for line in lines if line.lower().startswith(TRAILER_NAMES)]
    expected = [f"x-downloaded: {_count_header(lines)}", "x-failed: 0"]
    if trailers != expected:
        raise DemoFailed(f"the trailers are {trailers}, not {expected}")


def _count_header(lines: list[str]) -> str:
    return next((line.split(":")[1].strip() for line in lines if line.lower().startswith("x-total-images")), "?")


def _compare(sandbox: Sandbox, output: Path) -> None:
    """Compare the contents of the entries, not their positions: images are written as they arrive."""
    with zipfile.ZipFile(output) as archive:
        if (bad := archive.testzip()) is not None:
            raise DemoFailed(f"the entry {bad} is damaged")
        arrived = sorted(archive.read(name) for name in archive.namelist())
    served = sorted(sandbox.body(image.image_id) for image in sandbox.orders[DEMO_ORDER_ID].images)
    if arrived != served:
        raise DemoFailed("the images differ from those that the sandbox served")


async def _show(*command: str) -> None:
    _say("$ " + " ".join(command))
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait() != 0:
        raise DemoFailed(f"{command[0]} ended with exit code {process.returncode}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
