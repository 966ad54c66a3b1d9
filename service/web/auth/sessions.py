"""``/session``: sign in to the page, sign out, and the state of the session."""

import json
import time
from typing import Any
from urllib.parse import parse_qs

import structlog
from aiohttp import web

from service.errors import InvalidBody, InvalidCredentials
from service.web.auth.context import AUTH
from service.web.auth.guards import (
    SESSION_COOKIE,
    check_auth_rate_limit,
    passes_csrf_check,
    record_auth_failure,
    role_of,
)
from service.web.http.bodies import read_body

# One field with a key.
MAX_SIGN_IN_BYTES = 4096

log = structlog.get_logger(__name__)


async def get_session(request: web.Request) -> web.Response:
    """Return the client's role, and which ways to gain a higher one are configured."""
    cookie = request.cookies.get(SESSION_COOKIE)
    signed_in = cookie is not None and request.app[AUTH].sessions.verify(cookie) is not None
    return web.json_response({**_describe_access(request), "signed_in": signed_in})


async def create_session(request: web.Request) -> web.Response:
    """Verify a service key or the admin token, and set a session cookie."""
    auth = request.app[AUTH]
    if not passes_csrf_check(request):
        raise InvalidCredentials("Only the service's own page can sign a browser in.")
    check_auth_rate_limit(request)
    key = _parse_key(await read_body(request, max_bytes=MAX_SIGN_IN_BYTES), request.content_type)
    # Once more after the body: other requests may have failed meanwhile. No await lies between this and the count.
    check_auth_rate_limit(request)
    cookie = auth.sessions.create(key)
    if cookie is None:
        record_auth_failure(request)
        log.warning("session.rejected")
        raise InvalidCredentials("This is neither a service key nor the admin token.")
    expires_at = int(time.time()) + auth.sessions.ttl_seconds
    role = auth.sessions.verify(cookie)
    log.info("session.started", role=role.word if role is not None else None)
    session = {"role": role.word if role else None, "signed_in": True, "expires_at": expires_at}
    response = web.json_response({**_describe_access(request), **session})
    response.set_cookie(
        SESSION_COOKIE,
        cookie,
        max_age=auth.sessions.ttl_seconds,
        path="/",
        httponly=True,
        samesite="Strict",
        secure=_is_https(request),
    )
    return response


async def delete_session(request: web.Request) -> web.Response:
    """Delete the session cookie."""
    response = web.Response(status=204)
    response.del_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="Strict", secure=_is_https(request))
    return response


def _describe_access(request: web.Request) -> dict[str, Any]:
    auth, role = request.app[AUTH], role_of(request)
    return {
        "role": role.word if role is not None else None,
        "key_required": auth.credentials.keys_required,
        "admin_enabled": auth.credentials.admin_enabled,
        "links_enabled": auth.links.enabled,
    }


def _parse_key(body: bytes, content_type: str) -> str:
    """Return the field ``key`` of a form or of a JSON object.

    Raises:
        InvalidBody: there is none.
    """
    try:
        fields = (
            json.loads(body) if content_type == "application/json" else dict(parse_qs(body.decode(), max_num_fields=8))
        )
    except (ValueError, RecursionError) as error:
        raise InvalidBody("The body is neither JSON nor a form.") from error
    key = fields.get("key") if isinstance(fields, dict) else None
    key = key[0] if isinstance(key, list) and len(key) == 1 else key
    if not isinstance(key, str) or not key:
        raise InvalidBody("The body needs the field 'key'.")
    return key


def _is_https(request: web.Request) -> bool:
    """Whether the browser uses https, as far as can be known: then the cookie must be ``Secure``."""
    auth = request.app[AUTH]
    if auth.public_url is not None:
        return auth.public_url.startswith("https:")
    forwarded = request.headers.get("X-Forwarded-Proto", "") if auth.client_ips.trusted_proxy_hops else ""
    return request.scheme == "https" or forwarded == "https"
