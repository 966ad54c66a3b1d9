"""Brings photos into the API: an order, an image registered in it, the file put where the API says.

Registering is not idempotent: it is tried again only where nothing can have been registered. Putting a file is, so it
is tried again like a download.
"""

import asyncio
import itertools
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from yarl import URL

from service.model import Failure, Reason
from service.upstream.http.fetcher import Fetcher
from service.upstream.payloads import Text
from service.upstream.retry import AttemptFailed, backoff_seconds, status_failure

log = structlog.get_logger(__name__)

# An answer to a registration is one image's facts.
MAX_ANSWER_BYTES = 1024 * 1024
# A line to the storage slower than this is as good as none; it bounds how long one put may take.
SLOWEST_BYTES_PER_SECOND = 64 * 1024
# Answers after which nothing can have been registered: the request was not let in.
_NOT_LET_IN = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_OCTETS = "application/octet-stream"


class UploadFailed(Exception):
    """The upstream did not take an order or a photo in."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.detail}")
        self.failure = failure


class _Created(BaseModel):
    """What the API answers to a registration; ``s3PutObjectUrl`` is what older versions call ``upload_url``."""

    model_config = ConfigDict(extra="ignore")

    order_id: Text = None
    image_id: Text = None
    upload_url: Text = None
    s3PutObjectUrl: Text = None  # noqa: N815 - the API's name


@dataclass(frozen=True, slots=True)
class Registered:
    """An image that the API knows of, and where its file is to be put, with which type."""

    image_id: str
    url: URL
    content_type: str


class UploadClient:
    """The API as uploads see it. Shared by the whole process; ``attempts`` bounds the tries of each request."""

    def __init__(self, transport: Fetcher, *, api_base: str, attempts: int) -> None:
        self._transport = transport
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

    async def register(self, order_id: str, name: str, choices: Mapping[str, Any]) -> Registered:
        """Register an image in an order.

        Raises:
            UploadFailed
        """
        created = await self._create("images", {**choices, "image_name": name, "order_id": order_id})
        url = created.upload_url or created.s3PutObjectUrl
        if not created.image_id or not url:
            raise UploadFailed(Failure(Reason.UPSTREAM_ERROR, "the API registered an image and did not say where to"))
        return _registered(created.image_id, url)

    async def put(self, registered: Registered, file: Path, size: int) -> None:
        """Put a file of ``size`` bytes where its image was registered.

        Raises:
            UploadFailed
        """
        for tries in itertools.count(1):
            try:
                await self._put_once(registered, file, size)
            except AttemptFailed as error:
                if not error.retryable or tries >= self._attempts:
                    raise UploadFailed(error.failure) from error
                await self._pause(tries, error, registered.image_id)
            else:
                return

    async def _put_once(self, registered: Registered, file: Path, size: int) -> None:
        limit_seconds = size / SLOWEST_BYTES_PER_SECOND
        # Opened anew for each try: aiohttp closes it, and reads it in a thread.
        with file.open("rb") as content:
            headers = {"Content-Type": registered.content_type, "Content-Length": str(size)}
            async with self._transport.send(
                "PUT", registered.url, headers, content, extra_seconds=limit_seconds
            ) as response:
                if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                    raise status_failure(response.status, response.headers)

    async def _create(self, kind: str, fields: Mapping[str, Any]) -> _Created:
        for tries in itertools.count(1):
            try:
                return await self._create_once(kind, fields)
            except AttemptFailed as error:
                failure = error.failure
                again = failure.reason is Reason.CONNECTION_FAILED or failure.upstream_status in _NOT_LET_IN
                if not again or tries >= self._attempts:
                    raise UploadFailed(failure) from error
                await self._pause(tries, error, None)
        raise AssertionError("the loop ends by returning or raising")

    async def _create_once(self, kind: str, fields: Mapping[str, Any]) -> _Created:
        body = json.dumps(dict(fields)).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        url = URL(f"{self._api_base}/{kind}/", encoded=True)
        async with self._transport.send("POST", url, headers, body) as response:
            if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                raise status_failure(response.status, response.headers)
            answer = bytearray()
            while chunk := await self._transport.read(response):
                answer += chunk
                if len(answer) > MAX_ANSWER_BYTES:
                    break
        try:
            return _Created.model_validate_json(bytes(answer))
        except ValidationError as error:
            failure = Failure(Reason.UPSTREAM_ERROR, "the API's answer cannot be read")
            raise AttemptFailed(failure, retryable=False) from error

    async def _pause(self, tries: int, error: AttemptFailed, image_id: str | None) -> None:
        pause_seconds = backoff_seconds(tries, error.retry_after_seconds, random.random())
        reason = error.failure.reason.value
        log.info("upload.retried", image_id=image_id, reason=reason, detail=error.failure.detail, attempt=tries)
        await asyncio.sleep(pause_seconds)


def _registered(image_id: str, url: str) -> Registered:
    """Read the signed address; the type that was signed stands in its query.

    Raises:
        UploadFailed: it is no address, or its type is none that a header could hold.
    """
    unreadable = Failure(Reason.UPSTREAM_ERROR, "the API registered an image and gave no readable address")
    try:
        address = URL(url, encoded=True)
        content_type = address.query.get("content-type", _OCTETS)
        _ = address.port  # raises ValueError if there is no such port
    except ValueError as error:
        raise UploadFailed(unreadable) from error
    if not (address.raw_host and content_type.isascii() and content_type.isprintable()):
        raise UploadFailed(unreadable)
    return Registered(image_id, address, content_type)
