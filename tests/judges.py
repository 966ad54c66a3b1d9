"""Other people's unzip programs as judges of our archives.

Every judge takes the path of an archive and returns what it found, ``{entry name: content}``; it raises
``Refused`` if the program complains. A program that is not installed skips the test, in CI (``CI`` set) it fails it.
"""

import io
import os
import shutil
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

Judge = Callable[[Path], dict[str, bytes]]

_TIMEOUT_SECONDS = 60

# The entries as frames: name length, name, content length, content. A file system in between would change names.
_JAVA_READER = """
import java.io.*;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.zip.*;

public class Reader {
    public static void main(String[] args) throws IOException {
        var out = new DataOutputStream(new BufferedOutputStream(System.out));
        if (args[0].equals("file")) {
            try (var zip = new ZipFile(args[1])) {
                for (ZipEntry entry : Collections.list(zip.entries())) {
                    put(out, entry, zip.getInputStream(entry).readAllBytes());
                }
            }
        } else {
            try (var zip = new ZipInputStream(System.in)) {
                for (ZipEntry entry; (entry = zip.getNextEntry()) != null; ) {
                    put(out, entry, zip.readAllBytes());
                }
            }
        }
        out.flush();
    }

    static void put(DataOutputStream out, ZipEntry entry, byte[] content) throws IOException {
        byte[] name = entry.getName().getBytes(StandardCharsets.UTF_8);
        out.writeInt(name.length);
        out.write(name);
        out.writeInt(content.length);
        out.write(content);
    }
}
"""


class Refused(AssertionError):
    """A judge does not accept the archive; the message is what it said."""


def python_zipfile(archive: Path) -> dict[str, bytes]:
    """Python's zipfile, which checks every CRC while reading."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return {info.filename: opened.read(info) for info in opened.infolist()}
    except zipfile.BadZipFile as error:
        raise Refused(str(error)) from error


def info_zip(archive: Path) -> dict[str, bytes]:
    """Info-ZIP's unzip, the one on most Unix machines."""
    return _extracted(lambda folder: [_tool("unzip"), "-qq", str(archive), "-d", folder])


def seven_zip(archive: Path) -> dict[str, bytes]:
    """7-Zip, under any of the names it is installed by."""
    return _extracted(lambda folder: [_tool("7zz", "7z"), "x", "-y", "-bd", f"-o{folder}", str(archive)])


def bsdtar(archive: Path) -> dict[str, bytes]:
    """The libarchive of macOS and Windows, reading a file: it starts at the central directory."""
    return _extracted(lambda folder: [_tool("bsdtar"), "-xf", str(archive), "-C", folder])


def java_zip_file(archive: Path) -> dict[str, bytes]:
    """Java's ZipFile."""
    return _read_by_java("file", archive)


def bsdtar_stream(archive: Path) -> dict[str, bytes]:
    """The same libarchive on a pipe: it must make do with the local headers."""
    content = archive.read_bytes()
    return _extracted(lambda folder: [_tool("bsdtar"), "-xf", "-", "-C", folder], stdin=content)


def java_zip_input_stream(archive: Path) -> dict[str, bytes]:
    """Java's ZipInputStream, which never sees the central directory."""
    return _read_by_java("stream", archive)


CENTRAL_DIRECTORY_READERS = [
    pytest.param(judge, id=judge.__name__) for judge in (python_zipfile, info_zip, seven_zip, bsdtar, java_zip_file)
]
STREAM_READERS = [pytest.param(judge, id=judge.__name__) for judge in (bsdtar_stream, java_zip_input_stream)]


def _tool(*names: str) -> str:
    """Find an installed program by one of its names."""
    for name in names:
        if path := shutil.which(name):
            return path
    message = f"{' or '.join(names)} is not installed"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def _extracted(command: Callable[[str], list[str]], *, stdin: bytes = b"") -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        _run(command(folder), stdin)
        root = Path(folder)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _read_by_java(mode: str, archive: Path) -> dict[str, bytes]:
    java = _tool("java")
    _tool("javac")  # a run-time environment alone cannot start a source file
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "Reader.java")
        source.write_text(_JAVA_READER, encoding="ascii")
        frames = io.BytesIO(_run([java, str(source), mode, str(archive)], archive.read_bytes()))
    found = {}
    while name := _frame(frames):
        found[name.decode()] = _frame(frames)
    return found


def _frame(frames: io.BytesIO) -> bytes:
    length = frames.read(4)
    return frames.read(*struct.unpack(">i", length)) if length else b""


def _run(command: list[str], stdin: bytes) -> bytes:
    # unzip and bsdtar write names in the locale's encoding, and C alone has none for é.
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command, input=stdin, env=environment, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False
    )
    if done.returncode:
        raise Refused(f"{command[0]} exited {done.returncode}: {(done.stderr or done.stdout).decode(errors='replace')}")
    return done.stdout
