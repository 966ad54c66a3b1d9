"""Reads the body of ``POST /orders/{order_id}/images``: a manifest, or a list of image ids too long for a URL.

The list may also be a form's fields, because a page can start a download of a browser by a form only.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from service.archive.parameters import ArchiveOptions
from service.errors import InvalidBody
from service.web.http.bodies import read_body

# What a manifest says of one image, its names at their longest.
MAX_BODY_BYTES_PER_IMAGE = 2 * 1024


async def select_missing(
    request: web.Request, order_id: str, options: ArchiveOptions, *, max_images: int
) -> ArchiveOptions:
    """Return the options with the images that the body asks for; none, if it is a manifest that lacks nothing.

    Raises:
        InvalidBody: it is neither ``{"only": [ids]}``, as JSON or as a form, nor a manifest of this order; or ``only``
            is in the URL too.
        RequestBodyTimeout: it did not come in time.
    """
    if options.only:
        raise InvalidBody("The images are named by the body here; leave 'only' out of the URL.")
    body = await read_body(request, max_bytes=max_images * MAX_BODY_BYTES_PER_IMAGE)
    asked = _parsed(body, max_images)
    ids = tuple(dict.fromkeys(_ids(asked, order_id)))
    # A manifest is as old as its archive: the order may have changed since, which must not keep the rest back.
    return replace(options, only=ids, report_unknown="only" not in asked)


def _parsed(body: bytes, max_images: int) -> Any:
    # Judged by the body itself: curl --data calls JSON a form.
    try:
        if body.startswith(b"only="):
            return parse_qs(body.decode("ascii"), strict_parsing=True, max_num_fields=max_images)
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidBody("The body is neither JSON nor a form with 'only'.") from error


def _ids(asked: Any, order_id: str) -> Sequence[str]:
    if not isinstance(asked, dict) or not ("only" in asked or "missing" in asked):
        raise InvalidBody('The body must be a manifest (with "missing") or {"only": [image ids]}.')
    if "missing" in asked and str(asked.get("order_id", order_id)).lower() != order_id.lower():
        raise InvalidBody("The manifest is one of another order.")
    ids = asked["only"] if "only" in asked else asked["missing"]
    if not isinstance(ids, list) or not all(isinstance(one, str) and one for one in ids):
        raise InvalidBody("The image ids must be a list of texts.")
    if "only" in asked and not ids:
        raise InvalidBody("The list 'only' is empty.")
    return ids
