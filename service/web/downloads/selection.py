"""Reads the body of ``POST /orders/{order_id}/images``: a manifest, or a list of image ids too long for a URL.

The list may also be a form's fields, because a page can start a browser download with a body only by submitting a form.
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

# One image's record in a manifest, with names of the greatest length.
MAX_BODY_BYTES_PER_IMAGE = 2 * 1024


async def select_missing(
    request: web.Request, order_id: str, options: ArchiveOptions, *, max_images: int
) -> ArchiveOptions:
    """Return the options with the images that the body names; none, if it is a manifest without missing images.

    Raises:
        InvalidBody: it is neither ``{"only": [ids]}``, as JSON or as a form, nor a manifest of this order; or ``only``
            is in the URL too.
        RequestBodyTimeout: it did not arrive in time.
    """
    if options.only:
        raise InvalidBody("The images are named by the body here; leave 'only' out of the URL.")
    body = await read_body(request, max_bytes=max_images * MAX_BODY_BYTES_PER_IMAGE)
    selection = _parse(body, max_images)
    ids = tuple(dict.fromkeys(_image_ids(selection, order_id)))
    # A manifest is as old as its archive. If the order has changed since, the images that remain are still delivered.
    return replace(options, only=ids, report_unknown="only" not in selection)


def _parse(body: bytes, max_images: int) -> Any:
    # By the body, not its Content-Type: curl --data labels JSON as a form.
    try:
        if body.startswith(b"only="):
            return parse_qs(body.decode("ascii"), strict_parsing=True, max_num_fields=max_images)
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidBody("The body is neither JSON nor a form with 'only'.") from error


def _image_ids(selection: Any, order_id: str) -> Sequence[str]:
    if not isinstance(selection, dict) or not ("only" in selection or "missing" in selection):
        raise InvalidBody('The body must be a manifest (with "missing") or {"only": [image ids]}.')
    if "missing" in selection and str(selection.get("order_id", order_id)).lower() != order_id.lower():
        raise InvalidBody("The manifest belongs to another order.")
    ids = selection["only"] if "only" in selection else selection["missing"]
    if not isinstance(ids, list) or not all(isinstance(one, str) and one for one in ids):
        raise InvalidBody("The image ids must be a list of strings.")
    if "only" in selection and not ids:
        raise InvalidBody("The list 'only' is empty.")
    return ids
