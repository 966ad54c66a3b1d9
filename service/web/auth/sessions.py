"""``/session``: signing in to the page, and out again."""

import json
import time
from typing import Any
from urllib.parse import parse_qs

import structlog
from aiohttp import web

from service.errors import InvalidBody, InvalidCredentials
from service.web.auth.guards import SESSION_COOKIE, check_auth_rate_limit, client_ip, passes_csrf_check, role_of
from service.web.http.bodies import read_body
from service.web.services import SERVICES

# A key and its field's name; more is not a sign-in.
MAX_SIGN_IN_BYTES = 4096

log = structlog.get_logger(__name__)


async def get_session(request: web.Request) -> web.Response:
    """Tell what the caller may do, and what it would need for more."""
    cookie = request.cookies.get(SESSION_COOKIE)
    signed_in = cookie is not None and request.app[SERVICES].access.sessions.role_of(cookie) is not None
    return web.json_response({**_state(request), "signed_in": signed_in})


async def start_session(request: web.Request) -> web.Response:
    """Take a service key or the operator's token, and set the cookie that stands for it."""
    access = request.app[SERVICES].access
    if not passes_csrf_check(request):
        raise InvalidCredentials("Only the service's own page can sign a browser in.")
    check_auth_rate_limit(request)
    key = _key_in(await read_body(request, max_bytes=MAX_SIGN_IN_BYTES), request.content_type)
    # Again, now that the guess is in hand: others may have failed meanwhile. No await lies between this and the count.
    check_auth_rate_limit(request)
    cookie = access.sessions.start(key)
    if cookie is None:
        access.failures.note(client_ip(request))
        log.warning("session.rejected")
        raise InvalidCredentials("This is neither a key of the service nor the operator's token.")
    expires_at = int(time.time()) + access.sessions.seconds
    role = access.sessions.role_of(cookie)
    log.info("session.started", role=role.word if role is not None else None)
    answer = {"role": role.word if role else None, "signed_in": True, "expires_at": expires_at}
    response = web.json_response({**_state(request), **answer})
    response.set_cookie(
        SESSION_COOKIE,
        cookie,
        max_age=access.sessions.seconds,
        path="/",
        httponly=True,
        samesite="Strict",
        secure=_by_https(request),
    )
    return response


async def end_session(request: web.Request) -> web.Response:
    """Take the cookie back."""
    response = web.Response(status=204)
    response.del_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="Strict", secure=_by_https(request))
    return response


def _state(request: web.Request) -> dict[str, Any]:
    access, role = request.app[SERVICES].access, role_of(request)
    return {
        "role": role.word if role is not None else None,
        "key_required": access.credentials.keys_required,
        "admin_enabled": access.credentials.admin_enabled,
        "links_enabled": access.links.enabled,
    }


def _key_in(body: bytes, content_type: str) -> str:
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


def _by_https(request: web.Request) -> bool:
    """Whether the browser came by https, as far as can be told: then its cookie must not leave by http."""
    services = request.app[SERVICES]
    if services.public_url is not None:
        return services.public_url.startswith("https:")
    forwarded = request.headers.get("X-Forwarded-Proto", "") if services.access.callers.trusted_proxy_hops else ""
    return request.scheme == "https" or forwarded == "https"
