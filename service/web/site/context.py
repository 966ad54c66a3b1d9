"""Shared state of the web page and the API reference."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web

from service.archive.report import PLAIN_WORDS
from service.web.openapi.document import openapi_document


@dataclass(frozen=True, slots=True)
class SiteContext:
    """Two JSON documents that do not change while the service runs; ``openapi`` is encoded already."""

    page_config: Mapping[str, Any]
    openapi: bytes

    @classmethod
    def create(cls, version: str, **config: object) -> Self:
        """Build the documents; ``config`` is public, and goes to the page as it is."""
        reasons = {
            reason.value: {"text": text, "advice": advice.value} for reason, (text, advice) in PLAIN_WORDS.items()
        }
        return cls(
            page_config={"version": version, **config, "reasons": reasons},
            openapi=json.dumps(openapi_document(version), ensure_ascii=False).encode(),
        )


SITE = web.AppKey("site", SiteContext)
