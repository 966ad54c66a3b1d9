"""Shared state of the uploads."""

from dataclasses import dataclass

from aiohttp import web

from service.monitoring.metrics import Metrics
from service.streaming.admission import Admission
from service.upstream.uploads import UploadClient


@dataclass(frozen=True, slots=True)
class UploadsContext:
    """What the upload handlers need. ``upstream`` is ``None`` without an API key."""

    upstream: UploadClient | None
    metrics: Metrics
    admission: Admission
    max_files: int
    max_file_bytes: int
    client_stall_seconds: float


UPLOADS = web.AppKey("uploads", UploadsContext)
