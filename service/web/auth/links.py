"""``POST /orders/{order_id}/links``: signed, expiring URLs for one download by a client without a key."""

import json
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from yarl import URL

from service.archive.parameters import check_order_id, parse_parameters
from service.errors import InvalidBody, LinksNotConfigured
from service.web.auth.context import AUTH
from service.web.auth.credentials import Role
from service.web.auth.guards import LINK, UNSIGNED_PARAMETERS, require_download, require_full_quality
from service.web.http.bodies import read_body

DEFAULT_LINK_SECONDS = 24 * 3600
# Some hundred image ids fit, as into a URL; a longer URL would exceed the limits of proxies.
MAX_LINK_BODY_BYTES = 64 * 1024


async def create_link(request: web.Request) -> web.Response:
    """Create a link to an archive with exactly the given parameters."""
    auth = request.app[AUTH]
    role = require_download(request)
    order_id = check_order_id(request.match_info["order_id"])
    if not auth.links.enabled:
        raise LinksNotConfigured("The operator must set SIGNING_KEYS to enable links.")
    body = await read_body(request, max_bytes=MAX_LINK_BODY_BYTES)
    query, ttl_seconds = _parse_link_request(body, auth.max_link_seconds)
    options = parse_parameters(query)
    require_full_quality(role, options.image)
    full = role >= Role.FULL and options.image.spends_credits
    token, expires_at = auth.links.create(order_id, query, ttl_seconds=ttl_seconds, full=full)
    base = URL(auth.public_url) if auth.public_url else request.url.origin()
    url = (base / "orders" / order_id / "images").with_query([*query, (LINK, token)])
    expires = datetime.fromtimestamp(expires_at, UTC).isoformat()
    return web.json_response({"url": str(url), "expires_at": expires}, status=201)


def _parse_link_request(body: bytes, max_seconds: int) -> tuple[list[tuple[str, str]], int]:
    """Return the query parameters of the link, and its time to live in seconds.

    Raises:
        InvalidBody: the detail says why.
    """
    try:
        document = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidBody("The body is not JSON.") from error
    if not isinstance(document, dict) or document.keys() - {"parameters", "expires_in_seconds"}:
        raise InvalidBody("The body must be an object with 'parameters' and 'expires_in_seconds', both optional.")
    seconds = document.get("expires_in_seconds", min(DEFAULT_LINK_SECONDS, max_seconds))
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 < seconds <= max_seconds:
        raise InvalidBody(f"'expires_in_seconds' must be a whole number from 1 to {max_seconds}.")
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidBody("'parameters' must be an object: the query parameters of the download.")
    return [pair for name, value in parameters.items() for pair in _query_pairs(name, value)], seconds


def _query_pairs(name: str, value: Any) -> list[tuple[str, str]]:
    if name in UNSIGNED_PARAMETERS:
        raise InvalidBody(f"'{name}' is no parameter of a link.")
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float) for item in values):
        raise InvalidBody(f"The parameter '{name}' must be text, a number, a boolean or a list of these.")
    return [(name, str(item).lower() if isinstance(item, bool) else str(item)) for item in values]
