"""Check every archive with Info-ZIP's unzip too, which shares no code with Python's zipfile."""

import asyncio
import os
import shutil
import tempfile


def find_unzip() -> str | None:
    """Return the path of unzip, or None if it is not installed."""
    return shutil.which("unzip")


async def unzip_error(unzip: str, archive: bytes | bytearray) -> str | None:
    """Test an archive with unzip; return its error message, or None."""
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
