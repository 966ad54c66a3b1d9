"""Other people's unzip programs as judges of our archives.

Every judge takes the path of an archive and returns what it found, ``{entry name: content}``; it raises
``Refused`` if the program complains. A program that is not installed skips the test, in CI (``CI`` set) it fails it.

For archives that nobody wants to hold or unpack there are the same programs as pourers: they return the size and
hash of all contents, one after the other in the order in which the program finds them.
"""

import hashlib
import io
import os
import shutil
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest


class Contents(NamedTuple):
    """All contents of an archive, as if they were one."""

    size: int
    sha256: str


Judge = Callable[[Path], dict[str, bytes]]
Pourer = Callable[[Path], Contents]
ModeReader = Callable[[Path], dict[str, int]]

_TIMEOUT_SECONDS = 60
_PIECE_BYTES = 1024 * 1024
# What most systems set: extracted files then show the mode that the archive gives them, on any machine.
_UMASK = 0o022

# The entries as frames: name length, name, content length, content. A file system in between would change names.
# Or, to pour, only their contents.
_JAVA_READER = """
import java.io.*;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.zip.*;

public class Reader {
    static boolean pour;

    public static void main(String[] args) throws IOException {
        var out = new DataOutputStream(new BufferedOutputStream(new FileOutputStream(FileDescriptor.out)));
        pour = args.length > 2;
        if (args[0].equals("file")) {
            try (var zip = new ZipFile(args[1])) {
                for (ZipEntry entry : Collections.list(zip.entries())) {
                    put(out, entry, zip.getInputStream(entry));
                }
            }
        } else {
            try (var zip = new ZipInputStream(System.in)) {
                for (ZipEntry entry; (entry = zip.getNextEntry()) != null; ) {
                    put(out, entry, zip);
                }
            }
        }
        out.flush();
    }

    static void put(DataOutputStream out, ZipEntry entry, InputStream data) throws IOException {
        if (pour) {
            var piece = new byte[256 * 1024];
            for (int length; (length = data.read(piece)) > 0; ) {
                out.write(piece, 0, length);
            }
            return;
        }
        byte[] content = data.readAllBytes();
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
    return _extracted(lambda folder: [tool("unzip"), "-qq", str(archive), "-d", folder])


def seven_zip(archive: Path) -> dict[str, bytes]:
    """7-Zip, under any of the names it is installed by."""
    return _extracted(lambda folder: [tool("7zz", "7z"), "x", "-y", "-bd", f"-o{folder}", str(archive)])


def bsdtar(archive: Path) -> dict[str, bytes]:
    """The libarchive of macOS and Windows, reading a file: it starts at the central directory."""
    return _extracted(lambda folder: [tool("bsdtar"), "-xf", str(archive), "-C", folder])


def java_zip_file(archive: Path) -> dict[str, bytes]:
    """Java's ZipFile."""
    return _read_by_java("file", archive)


def bsdtar_stream(archive: Path) -> dict[str, bytes]:
    """The same libarchive on a pipe: it must make do with the local headers."""
    content = archive.read_bytes()
    return _extracted(lambda folder: [tool("bsdtar"), "-xf", "-", "-C", folder], stdin=content)


def java_zip_input_stream(archive: Path) -> dict[str, bytes]:
    """Java's ZipInputStream, which never sees the central directory."""
    return _read_by_java("stream", archive)


def listed_modes(archive: Path) -> dict[str, str]:
    """Return the mode of each entry as Info-ZIP's zipinfo lists it, such as ``-rw-r--r--``."""
    header, *listing, totals = _run([tool("zipinfo"), "-s", str(archive)], b"").decode().splitlines()
    assert header.startswith("Archive:")
    assert "files" in totals
    rows = [line.split(maxsplit=8) for line in listing if not line.startswith("Zip file size:")]
    return {row[-1]: row[0] for row in rows}


def unzipped_modes(archive: Path) -> dict[str, int]:
    """Return the modes of the files that Info-ZIP's unzip extracts."""
    return _extracted_modes(lambda folder: [tool("unzip"), "-qq", str(archive), "-d", folder])


def bsdtar_modes(archive: Path) -> dict[str, int]:
    """Return the modes of the files that bsdtar extracts from a file."""
    return _extracted_modes(lambda folder: [tool("bsdtar"), "-xf", str(archive), "-C", folder])


MODE_READERS = [pytest.param(reader, id=reader.__name__) for reader in (unzipped_modes, bsdtar_modes)]
CENTRAL_DIRECTORY_READERS = [
    pytest.param(judge, id=judge.__name__) for judge in (python_zipfile, info_zip, seven_zip, bsdtar, java_zip_file)
]
STREAM_READERS = [pytest.param(judge, id=judge.__name__) for judge in (bsdtar_stream, java_zip_input_stream)]


def _python_pours(archive: Path) -> Contents:
    with zipfile.ZipFile(archive) as opened:
        return _contents(piece for info in opened.infolist() for piece in _pieces(opened, info))


def _unzip_pours(archive: Path) -> Contents:
    return _poured([tool("unzip"), "-p", str(archive)])


def _seven_zip_pours(archive: Path) -> Contents:
    return _poured([tool("7zz", "7z"), "x", "-so", str(archive)])


def _bsdtar_pours(archive: Path) -> Contents:
    return _poured([tool("bsdtar"), "-xOf", str(archive)])


def _java_pours(archive: Path) -> Contents:
    return _java_pours_by("file", archive)


def _bsdtar_pours_a_stream(archive: Path) -> Contents:
    return _poured([tool("bsdtar"), "-xOf", "-"], piped=archive)


def _java_pours_a_stream(archive: Path) -> Contents:
    return _java_pours_by("stream", archive)


POURERS: dict[Judge, Pourer] = {
    python_zipfile: _python_pours,
    info_zip: _unzip_pours,
    seven_zip: _seven_zip_pours,
    bsdtar: _bsdtar_pours,
    java_zip_file: _java_pours,
    bsdtar_stream: _bsdtar_pours_a_stream,
    java_zip_input_stream: _java_pours_a_stream,
}


def tool(*names: str) -> str:
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


def _extracted_modes(command: Callable[[str], list[str]]) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        _run(command(folder), b"")
        root = Path(folder)
        return {str(path.relative_to(root)): path.stat().st_mode for path in root.rglob("*") if path.is_file()}


def _read_by_java(mode: str, archive: Path) -> dict[str, bytes]:
    with _java_reader() as command:
        frames = io.BytesIO(_run([*command, mode, str(archive)], archive.read_bytes()))
    found = {}
    while name := _frame(frames):
        found[name.decode()] = _frame(frames)
    return found


def _java_pours_by(mode: str, archive: Path) -> Contents:
    with _java_reader() as command:
        return _poured([*command, mode, str(archive), "pour"], piped=archive if mode == "stream" else None)


@contextmanager
def _java_reader() -> Iterator[list[str]]:
    java = tool("java")
    tool("javac")  # a run-time environment alone cannot start a source file
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "Reader.java")
        source.write_text(_JAVA_READER, encoding="ascii")
        yield [java, str(source)]


def _frame(frames: io.BytesIO) -> bytes:
    length = frames.read(4)
    return frames.read(*struct.unpack(">i", length)) if length else b""


def _run(command: list[str], stdin: bytes) -> bytes:
    # unzip and bsdtar write names in the locale's encoding, and C alone has none for é.
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command,
        input=stdin,
        env=environment,
        umask=_UMASK,
        capture_output=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise Refused(f"{command[0]} exited {done.returncode}: {(done.stderr or done.stdout).decode(errors='replace')}")
    return done.stdout


def _poured(command: list[str], piped: Path | None = None) -> Contents:
    """Run a program that writes contents to its standard output; ``piped`` comes to it through a real pipe."""
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile())
        source = None
        if piped is not None:
            # A file as standard input is no pipe: bsdtar would seek in it.
            source = stack.enter_context(subprocess.Popen([tool("cat"), str(piped)], stdout=subprocess.PIPE)).stdout
        program = stack.enter_context(
            subprocess.Popen(command, stdin=source or subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        )
        if source is not None:
            source.close()  # the program has its own; if it gives up, cat must notice
        assert program.stdout is not None
        contents = _contents(iter(partial(program.stdout.read, _PIECE_BYTES), b""))
        if program.wait():
            errors.seek(0)
            raise Refused(f"{command[0]} exited {program.returncode}: {errors.read().decode(errors='replace')}")
    return contents


def _pieces(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with opened.open(info) as file:
        yield from iter(partial(file.read, _PIECE_BYTES), b"")


def _contents(pieces: Iterable[bytes]) -> Contents:
    size, digest = 0, hashlib.sha256()
    for piece in pieces:
        size += len(piece)
        digest.update(piece)
    return Contents(size, digest.hexdigest())
