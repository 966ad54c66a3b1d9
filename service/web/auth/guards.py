"""Authentication and authorization of requests. Handlers call a guard first; it returns or raises a problem."""

import hmac
import json
import math
from typing import TypeVar

from aiohttp import web

from service.errors import (
    AdminNotConfigured,
    AdminRequired,
    ApiKeyNotConfigured,
    AuthenticationRequired,
    FullQualityNotAllowed,
    LinkExpired,
    LinkInvalid,
    TooManyAuthFailures,
)
from service.model import ImageOptions
from service.streaming.receipts import Receipt
from service.web.auth.context import AUTH
from service.web.auth.credentials import Role, extract_secrets
from service.web.auth.tokens import LinkRejected

SESSION_COOKIE = "batch_session"
LINK = "link"
# Parameters that a link's signature does not cover: they do not change what is downloaded.
UNSIGNED_PARAMETERS = frozenset({LINK, "archive_id"})
# Values of Sec-Fetch-Site (Fetch Metadata) for a request that our own page, or the user, started.
_TRUSTED_FETCH_SITES = frozenset({"same-origin", "none"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_T = TypeVar("_T")


def role_of(request: web.Request) -> Role | None:
    """Return the role that the request's key, token or session grants; ``None`` without any.

    Raises:
        TooManyAuthFailures: its address has sent too many wrong secrets.
    """
    auth = request.app[AUTH]
    if (secrets := extract_secrets(request.headers)) and auth.credentials.has_secrets:
        check_auth_rate_limit(request)
        roles = [role for role in map(auth.credentials.role_of, secrets) if role is not None]
        if roles:
            return max(roles)
        record_auth_failure(request)
    elif (cookie := request.cookies.get(SESSION_COOKIE)) and passes_csrf_check(request):
        role = auth.sessions.verify(cookie)
        if role is not None:
            return role
    return auth.credentials.anonymous


def require_download(request: web.Request) -> Role:
    """Require permission to download; return the role.

    Raises:
        AuthenticationRequired, TooManyAuthFailures
    """
    role = role_of(request)
    if role is None:
        raise AuthenticationRequired("Send one of the service's keys in X-API-Key or as bearer token.")
    return role


def require_order_download(request: web.Request, order_id: str) -> Role:
    """Require permission to download, or a link that was signed for this download; return the role.

    Raises:
        AuthenticationRequired, TooManyAuthFailures, LinkInvalid, LinkExpired
    """
    token = link_token(request)
    if token is None:
        return require_download(request)
    query = [(name, value) for name, value in request.query.items() if name not in UNSIGNED_PARAMETERS]
    try:
        return request.app[AUTH].links.verify(token, order_id, query)
    except LinkRejected as error:
        raise _link_problem(error, "This link was not made for this order with these parameters.") from error


def require_receipt_access(request: web.Request) -> None:
    """Require permission to download, or a valid link. ``require_receipt_link`` then checks the receipt itself.

    Raises:
        AuthenticationRequired, TooManyAuthFailures, LinkInvalid, LinkExpired
    """
    token = link_token(request)
    if token is None:
        require_download(request)
        return
    try:
        request.app[AUTH].links.verify_signature(token)
    except LinkRejected as error:
        raise _link_problem(error, "This link is not valid.") from error


def require_receipt_link(request: web.Request, receipt: Receipt) -> None:
    """Require that a request by link uses the link that the archive was downloaded by.

    Raises:
        LinkInvalid
    """
    token = link_token(request)
    if token is not None and (receipt.link is None or not hmac.compare_digest(token.encode(), receipt.link.encode())):
        raise LinkInvalid("This archive was not downloaded by this link.")


def require_full_quality(role: Role, options: ImageOptions) -> None:
    """Require permission to spend credits, if the options spend any.

    Raises:
        FullQualityNotAllowed
    """
    if options.spends_credits and role < Role.FULL:
        raise FullQualityNotAllowed("preview=false spends credits, and this client may not; dev_mode=true spends none.")


def require_admin(request: web.Request) -> None:
    """Require the admin token or a session of it.

    Raises:
        AdminNotConfigured: ADMIN_TOKEN is not set.
        AdminRequired: the request does not carry the admin token.
        TooManyAuthFailures
    """
    if not request.app[AUTH].credentials.admin_enabled:
        raise AdminNotConfigured("The operator must set ADMIN_TOKEN to enable this endpoint.")
    if role_of(request) is not Role.ADMIN:
        raise AdminRequired("Only the operator may do this: send ADMIN_TOKEN in X-Admin-Token or as bearer token.")


def require_upstream(client: _T | None) -> _T:
    """Return a client of the Autoenhance API, which is ``None`` without an API key.

    Raises:
        ApiKeyNotConfigured
    """
    if client is None:
        raise ApiKeyNotConfigured("The operator must set AUTOENHANCE_API_KEY; until then the API is not available.")
    return client


def check_auth_rate_limit(request: web.Request) -> None:
    """Reject addresses that have sent too many wrong secrets, before any secret is compared.

    Raises:
        TooManyAuthFailures
    """
    retry_after_seconds = request.app[AUTH].failures.retry_after_seconds(client_ip(request))
    if retry_after_seconds:
        raise TooManyAuthFailures(
            "Too many wrong keys came from this address.", retry_after_seconds=math.ceil(retry_after_seconds)
        )


def record_auth_failure(request: web.Request) -> None:
    """Count a wrong secret against the client's address."""
    request.app[AUTH].failures.record_failure(client_ip(request))


def client_ip(request: web.Request) -> str:
    """Return the client's address, as the key of the rate limit."""
    return request.app[AUTH].client_ips.resolve(request)


def client_fingerprint(request: web.Request) -> str:
    """Return a keyed hash that identifies the client: of its link, keys or session, else of its address."""
    if (token := link_token(request)) is not None:
        identity = ["link", token]
    elif secrets := extract_secrets(request.headers):
        identity = ["key", *secrets]
    elif cookie := request.cookies.get(SESSION_COOKIE):
        identity = ["session", cookie]
    else:
        identity = ["address", client_ip(request)]
    return request.app[AUTH].credentials.fingerprint(json.dumps(identity))


def link_token(request: web.Request) -> str | None:
    """Return the token in the parameter ``link``. Several are joined, which never verifies."""
    tokens = request.query.getall(LINK, [])
    return " ".join(tokens) if tokens else None


def passes_csrf_check(request: web.Request) -> bool:
    """Whether a request with a cookie is safe, or does not come from another site's page."""
    return (
        request.method in _SAFE_METHODS or request.headers.get("Sec-Fetch-Site", "same-origin") in _TRUSTED_FETCH_SITES
    )


def _link_problem(error: LinkRejected, detail: str) -> LinkExpired | LinkInvalid:
    if error.expired:
        return LinkExpired("This link has expired. Request a new one from its sender.")
    return LinkInvalid(detail)
