"""Verifies a downloaded archive against its central directory, its CRC-32s and its manifest."""

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST_NAME, REPORT_NAME = "_manifest.json", "_download_report.txt"


class ArchiveDamaged(Exception):
    """The file is not a complete ZIP archive, or contradicts its own manifest."""


@dataclass(frozen=True, slots=True)
class VerifiedArchive:
    """A sound archive: the names of its images, and the manifest's records of the failed ones.

    ``manifest`` is ``None`` for an archive without one: none of its images failed.
    """

    images: Sequence[str]
    failed: Sequence[Mapping[str, Any]]
    manifest: Mapping[str, Any] | None


def verify_archive(path: Path) -> VerifiedArchive:
    """Read every byte of an archive and check it against its checksums and its manifest.

    Raises:
        ArchiveDamaged: with the first mismatch as its message.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ArchiveDamaged(f"the entry {damaged!r} is damaged")
            manifest = json.loads(archive.read(MANIFEST_NAME)) if MANIFEST_NAME in archive.namelist() else None
            entries = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ArchiveDamaged(f"it is not a complete ZIP archive: {error}") from error
    images = [name for name in entries if name not in {MANIFEST_NAME, REPORT_NAME}]
    if manifest is None:
        return VerifiedArchive(images, [], None)
    records = _image_records(manifest)
    for record in records:
        info = entries.get(record.get("entry") or "")
        if record.get("outcome") == "downloaded" and (
            info is None or (info.file_size, f"{info.CRC:08x}") != (record.get("size"), record.get("crc32"))
        ):
            raise ArchiveDamaged(f"the image {record.get('image_id')} is missing or differs from the manifest")
    return VerifiedArchive(images, [record for record in records if record.get("outcome") == "failed"], manifest)


def _image_records(manifest: Any) -> list[Mapping[str, Any]]:
    records = manifest.get("images") if isinstance(manifest, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ArchiveDamaged("its manifest is invalid")
    return records
