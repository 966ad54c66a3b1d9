"""Info-ZIP's unzip as a second opinion on every archive; its code has nothing in common with Python's zipfile."""

import asyncio
import os
import shutil
import tempfile


def find_unzip() -> str | None:
    """Return the program, if it is installed."""
    return shutil.which("unzip")


async def complaint_of(unzip: str, archive: bytes | bytearray) -> str | None:
    """Let unzip test an archive; return what it complains about, if it does."""
    with tempfile.NamedTemporaryFile(suffix=".zip") as file:
        await asyncio.to_thread(_write, file.fileno(), archive)
        process = await asyncio.create_subprocess_exec(
            unzip, "-tqq", file.name,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
    return f"exit {process.returncode}: {output.decode(errors='replace').strip()}" if process.returncode else None


def _write(descriptor: int, archive: bytes | bytearray) -> None:
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(archive)
