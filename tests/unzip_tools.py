"""Independent unzip programs that read our archives.

A reader takes the path of an archive and returns ``{entry name: content}``; it raises ``UnzipError`` if the program
exits with an error. A program that is not installed skips the test; in CI (``CI`` set) it fails the test.

For archives too large to unpack, a hasher streams the contents of all entries out of the same program and returns
their total size and SHA-256, in the order in which the program finds the entries.
"""

import atexit
import functools
import hashlib
import io
import os
import shutil
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest


class Contents(NamedTuple):
    """The contents of all entries, concatenated."""

    size: int
    sha256: str


ZipReader = Callable[[Path], dict[str, bytes]]
ContentHasher = Callable[[Path], Contents]
ModeReader = Callable[[Path], dict[str, int]]

_TIMEOUT_SECONDS = 60
_CHUNK_BYTES = 1024 * 1024
# The usual umask, set so that extracted files have the archive's modes on any machine.
_UMASK = 0o022

# Writes each entry as a frame: name length, name, content length, content. Extracting to a file system would change
# names. With a third argument it writes the contents only.
_JAVA_READER = """
import java.io.*;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.zip.*;

public class Reader {
    static boolean contentsOnly;

    public static void main(String[] args) throws IOException {
        var out = new DataOutputStream(new BufferedOutputStream(new FileOutputStream(FileDescriptor.out)));
        contentsOnly = args.length > 2;
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
        if (contentsOnly) {
            var chunk = new byte[256 * 1024];
            for (int length; (length = data.read(chunk)) > 0; ) {
                out.write(chunk, 0, length);
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
# A start of the JVM costs more than the work: no second compiler tier, no threads of a parallel collector.
_JAVA_OPTIONS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")


class UnzipError(AssertionError):
    """A program rejected the archive; the message is the program's output."""


def python_zipfile(archive: Path) -> dict[str, bytes]:
    """Read with Python's zipfile, which checks every CRC."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return {info.filename: opened.read(info) for info in opened.infolist()}
    except zipfile.BadZipFile as error:
        raise UnzipError(str(error)) from error


def info_zip(archive: Path) -> dict[str, bytes]:
    """Read with Info-ZIP's unzip, the one on most Unix machines."""
    return _extracted(lambda folder: [tool("unzip"), "-qq", str(archive), "-d", folder])


def seven_zip(archive: Path) -> dict[str, bytes]:
    """Read with 7-Zip, under any of the names it is installed by."""
    return _extracted(lambda folder: [tool("7zz", "7z"), "x", "-y", "-bd", f"-o{folder}", str(archive)])


def bsdtar(archive: Path) -> dict[str, bytes]:
    """Read a file with libarchive, as macOS and Windows do: it starts at the central directory."""
    return _extracted(lambda folder: [tool("bsdtar"), "-xf", str(archive), "-C", folder])


def java_zip_file(archive: Path) -> dict[str, bytes]:
    """Read with Java's ZipFile."""
    return _read_by_java("file", archive)


def bsdtar_stream(archive: Path) -> dict[str, bytes]:
    """Read a pipe with libarchive: only the local headers are available."""
    content = archive.read_bytes()
    return _extracted(lambda folder: [tool("bsdtar"), "-xf", "-", "-C", folder], stdin=content)


def java_zip_input_stream(archive: Path) -> dict[str, bytes]:
    """Read with Java's ZipInputStream, which ignores the central directory."""
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
    pytest.param(reader, id=reader.__name__) for reader in (python_zipfile, info_zip, seven_zip, bsdtar, java_zip_file)
]
STREAM_READERS = [pytest.param(reader, id=reader.__name__) for reader in (bsdtar_stream, java_zip_input_stream)]


def _hash_with_python(archive: Path) -> Contents:
    with zipfile.ZipFile(archive) as opened:
        return _contents(chunk for info in opened.infolist() for chunk in _chunks(opened, info))


def _hash_with_unzip(archive: Path) -> Contents:
    return _hash_output([tool("unzip"), "-p", str(archive)])


def _hash_with_seven_zip(archive: Path) -> Contents:
    return _hash_output([tool("7zz", "7z"), "x", "-so", str(archive)])


def _hash_with_bsdtar(archive: Path) -> Contents:
    return _hash_output([tool("bsdtar"), "-xOf", str(archive)])


def _hash_with_java(archive: Path) -> Contents:
    return _run_java_hasher("file", archive)


def _hash_with_bsdtar_stream(archive: Path) -> Contents:
    return _hash_output([tool("bsdtar"), "-xOf", "-"], piped=archive)


def _hash_with_java_stream(archive: Path) -> Contents:
    return _run_java_hasher("stream", archive)


CONTENT_HASHERS: dict[ZipReader, ContentHasher] = {
    python_zipfile: _hash_with_python,
    info_zip: _hash_with_unzip,
    seven_zip: _hash_with_seven_zip,
    bsdtar: _hash_with_bsdtar,
    java_zip_file: _hash_with_java,
    bsdtar_stream: _hash_with_bsdtar_stream,
    java_zip_input_stream: _hash_with_java_stream,
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
    frames = io.BytesIO(_run([*_java_reader(), mode, str(archive)], archive.read_bytes() if mode == "stream" else b""))
    found = {}
    while name := _frame(frames):
        found[name.decode()] = _frame(frames)
    return found


def _run_java_hasher(mode: str, archive: Path) -> Contents:
    command = [*_java_reader(), mode, str(archive), "contents"]
    return _hash_output(command, piped=archive if mode == "stream" else None)


@functools.cache
def _java_reader() -> tuple[str, ...]:
    """Compile the reader, once in a process, and return the command that runs it."""
    java, javac = tool("java"), tool("javac")
    folder = Path(tempfile.mkdtemp(prefix="java-reader-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = folder / "Reader.java"
    source.write_text(_JAVA_READER, encoding="ascii")
    subprocess.run([javac, "-d", str(folder), str(source)], capture_output=True, timeout=_TIMEOUT_SECONDS, check=True)
    return (java, *_JAVA_OPTIONS, "-cp", str(folder), "Reader")


def _frame(frames: io.BytesIO) -> bytes:
    length = frames.read(4)
    return frames.read(*struct.unpack(">i", length)) if length else b""


def _run(command: list[str], stdin: bytes) -> bytes:
    # unzip and bsdtar write names in the locale's encoding; that of the plain C locale has no é.
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
        raise UnzipError(
            f"{command[0]} exited {done.returncode}: {(done.stderr or done.stdout).decode(errors='replace')}"
        )
    return done.stdout


def _hash_output(command: list[str], piped: Path | None = None) -> Contents:
    """Hash the standard output of a program; ``piped`` is its standard input, through a real pipe."""
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile())
        source = None
        if piped is not None:
            # Not the file itself: bsdtar would seek in it.
            source = stack.enter_context(subprocess.Popen([tool("cat"), str(piped)], stdout=subprocess.PIPE)).stdout
        program = stack.enter_context(
            subprocess.Popen(command, stdin=source or subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        )
        if source is not None:
            source.close()  # the program has its own copy; cat must get SIGPIPE when the program ends early
        assert program.stdout is not None
        contents = _contents(iter(partial(program.stdout.read, _CHUNK_BYTES), b""))
        if program.wait():
            errors.seek(0)
            raise UnzipError(f"{command[0]} exited {program.returncode}: {errors.read().decode(errors='replace')}")
    return contents


def _chunks(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with opened.open(info) as file:
        yield from iter(partial(file.read, _CHUNK_BYTES), b"")


def _contents(chunks: Iterable[bytes]) -> Contents:
    size, digest = 0, hashlib.sha256()
    for chunk in chunks:
        size += len(chunk)
        digest.update(chunk)
    return Contents(size, digest.hexdigest())
