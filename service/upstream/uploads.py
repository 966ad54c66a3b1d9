"""Uploads photos to the API: creates an order, registers an image in it, puts the file to the URL that the API gives.

Registering is not idempotent: it is retried only where nothing can have been registered. Putting a file is, so it is
retried like a download.
"""

import functools
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from yarl import URL

from service.model import Failure, Reason
from service.upstream.http.bodies import BodyTooLarge, read_bounded
from service.upstream.http.fetcher import Fetcher
from service.upstream.payloads import Text
from service.upstream.retry import AttemptFailed, status_failure, storage_failure
from service.upstream.retry_loop import RetryLoop

log = structlog.get_logger(__name__)

# The response to a registration describes one image.
MAX_RESPONSE_BYTES = 1024 * 1024
# A slower connection to the storage counts as broken; it bounds how long one put may take.
MIN_BYTES_PER_SECOND = 64 * 1024
# Statuses with which nothing can have been registered: the request was not processed.
_NOT_PROCESSED = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_OCTETS = "application/octet-stream"

_T = TypeVar("_T")


class UploadFailed(Exception):
    """The upstream did not accept an order or a photo."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.detail}")
        self.failure = failure


class _CreationPayload(BaseModel):
    """The API's response to a registration; older versions call ``upload_url`` ``s3PutObjectUrl``."""

    model_config = ConfigDict(extra="ignore")

    order_id: Text = None
    image_id: Text = None
    upload_url: Text = None
    s3PutObjectUrl: Text = None  # noqa: N815 - the API's name


@dataclass(frozen=True, slots=True)
class UploadTarget:
    """A registered image, and the URL and media type with which to put its file."""

    image_id: str
    url: URL
    content_type: str


class UploadClient:
    """Orders and uploads of the API. Shared by the whole process; ``attempts`` bounds those of each request."""

    def __init__(self, fetcher: Fetcher, *, api_base: str, attempts: int) -> None:
        self._fetcher = fetcher
        self._api_base = api_base
        self._attempts = attempts

    async def create_order(self, name: str) -> str:
        """Create an order and return its id.

        Raises:
            UploadFailed
        """
        created = await self._create("orders", {"name": name} if name else {})
        if not created.order_id:
            raise UploadFailed(Failure(Reason.UPSTREAM_ERROR, "the API created an order without an id"))
        return created.order_id

    async def register(self, order_id: str, name: str, options: Mapping[str, Any]) -> UploadTarget:
        """Register an image in an order.

        Raises:
            UploadFailed
        """
        created = await self._create("images", {**options, "image_name": name, "order_id": order_id})
        url = created.upload_url or created.s3PutObjectUrl
        if not created.image_id or not url:
            raise UploadFailed(Failure(Reason.UPSTREAM_ERROR, "the API registered an image without an upload URL"))
        return _parse_target(created.image_id, url)

    async def put(self, target: UploadTarget, file: Path, size: int) -> None:
        """Put a file of ``size`` bytes to the URL of its image.

        Raises:
            UploadFailed
        """
        await self._run(lambda: self._put_once(target, file, size), target.image_id)

    async def _put_once(self, target: UploadTarget, file: Path, size: int) -> None:
        limit_seconds = size / MIN_BYTES_PER_SECOND
        # Opened for each attempt: aiohttp closes it, and reads it in a thread.
        with file.open("rb") as content:
            headers = {"Content-Type": target.content_type, "Content-Length": str(size)}
            async with self._fetcher.send("PUT", target.url, headers, content, extra_seconds=limit_seconds) as response:
                status, fields = response.status, response.headers
                if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
                    raise storage_failure(status, fields) or status_failure(status, fields)

    async def _create(self, collection: str, fields: Mapping[str, Any]) -> _CreationPayload:
        async def attempt() -> _CreationPayload:
            try:
                return await self._create_once(collection, fields)
            except AttemptFailed as error:
                failure = error.failure
                unprocessed = failure.reason is Reason.CONNECTION_FAILED or failure.upstream_status in _NOT_PROCESSED
                raise AttemptFailed(
                    failure, retryable=unprocessed, retry_after_seconds=error.retry_after_seconds
                ) from error

        return await self._run(attempt, None)

    async def _create_once(self, collection: str, fields: Mapping[str, Any]) -> _CreationPayload:
        body = json.dumps(dict(fields)).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        url = URL(f"{self._api_base}/{collection}/", encoded=True)
        async with self._fetcher.send("POST", url, headers, body) as response:
            if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                raise status_failure(response.status, response.headers)
            try:
                read = functools.partial(self._fetcher.read, response)
                return _CreationPayload.model_validate_json(await read_bounded(read, max_bytes=MAX_RESPONSE_BYTES))
            except (BodyTooLarge, ValidationError) as error:
                failure = Failure(Reason.UPSTREAM_ERROR, "the API's response cannot be parsed")
                raise AttemptFailed(failure, retryable=False) from error

    async def _run(self, attempt: Callable[[], Awaitable[_T]], image_id: str | None) -> _T:
        """Run attempts with retries; raise the last failure as ``UploadFailed``."""

        def on_retry(error: AttemptFailed, attempts: int) -> None:
            reason = error.failure.reason.value
            log.info("upload.retried", image_id=image_id, reason=reason, detail=error.failure.detail, attempt=attempts)

        try:
            return await RetryLoop(self._attempts).run(attempt, on_retry)
        except AttemptFailed as error:
            raise UploadFailed(error.failure) from error


def _parse_target(image_id: str, url: str) -> UploadTarget:
    """Parse the signed URL; its query has the media type that was signed.

    Raises:
        UploadFailed: it is no URL, or its media type is not a valid header value.
    """
    invalid = Failure(Reason.UPSTREAM_ERROR, "the API registered an image with an invalid upload URL")
    try:
        target = URL(url, encoded=True)
        content_type = target.query.get("content-type", _OCTETS)
        _ = target.port  # raises ValueError if there is no such port
    except ValueError as error:
        raise UploadFailed(invalid) from error
    if not (target.raw_host and content_type.isascii() and content_type.isprintable()):
        raise UploadFailed(invalid)
    return UploadTarget(image_id, target, content_type)
