"""Lets a request pass or refuses it: who may do what, asked by handlers in their first line."""

import hmac
import json
import math

from aiohttp import web

from service.errors import (
    AdminNotConfigured,
    AdminRequired,
    AuthenticationRequired,
    FullQualityNotAllowed,
    LinkExpired,
    LinkInvalid,
    TooManyAuthFailures,
)
from service.model import ImageOptions
from service.streaming.receipts import Receipt
from service.web.auth.credentials import LinkRejected, Role, secrets_in
from service.web.services import SERVICES

SESSION_COOKIE = "batch_session"
LINK = "link"
# What a link leaves open: it changes nothing of what is downloaded.
NOT_SIGNED = frozenset({LINK, "archive_id"})
# What a browser says of who made it send a request (Fetch Metadata): our own page, or the user.
_OUR_OWN_SITE = frozenset({"same-origin", "none"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def role_of(request: web.Request) -> Role | None:
    """Return what the caller may do by its key, token or session; ``None`` for nothing.

    Raises:
        TooManyAuthFailures: too many wrong secrets came from its address.
    """
    access = request.app[SERVICES].access
    if (given := secrets_in(request.headers)) and access.credentials.has_secrets:
        check_auth_rate_limit(request)
        roles = [role for role in map(access.credentials.role_of, given) if role is not None]
        if roles:
            return max(roles)
        access.failures.note(client_ip(request))
    elif (cookie := request.cookies.get(SESSION_COOKIE)) and passes_csrf_check(request):
        role = access.sessions.role_of(cookie)
        if role is not None:
            return role
    return access.credentials.anonymous


def require_download(request: web.Request) -> Role:
    """Let pass who may download, and return what it may do.

    Raises:
        AuthenticationRequired, TooManyAuthFailures
    """
    role = role_of(request)
    if role is None:
        raise AuthenticationRequired("Send one of the service's keys in X-API-Key or as bearer token.")
    return role


def require_this_download(request: web.Request, order_id: str) -> Role:
    """Let pass who may download, or has a link to exactly this; return what it may do.

    Raises:
        AuthenticationRequired, TooManyAuthFailures, LinkInvalid, LinkExpired
    """
    token = link_in(request)
    if token is None:
        return require_download(request)
    query = [(name, value) for name, value in request.query.items() if name not in NOT_SIGNED]
    try:
        return request.app[SERVICES].access.links.role_of(token, order_id, query)
    except LinkRejected as error:
        raise _refusal(error, "This link was not made for this order with these parameters.") from error


def require_receipt(request: web.Request) -> None:
    """Let pass who may download, or has a good link; which receipt it shows is asked by ``require_own_receipt``.

    Raises:
        AuthenticationRequired, TooManyAuthFailures, LinkInvalid, LinkExpired
    """
    token = link_in(request)
    if token is None:
        require_download(request)
        return
    try:
        request.app[SERVICES].access.links.check(token)
    except LinkRejected as error:
        raise _refusal(error, "This link opens nothing.") from error


def require_own_receipt(request: web.Request, receipt: Receipt) -> None:
    """Let pass who was let in without a link, or with the one that the archive was downloaded by.

    Raises:
        LinkInvalid
    """
    token = link_in(request)
    if token is not None and (receipt.link is None or not hmac.compare_digest(token.encode(), receipt.link.encode())):
        raise LinkInvalid("This archive was not downloaded by this link.")


def link_in(request: web.Request) -> str | None:
    """Return the token of the link that a request was made by; two tokens, joined, are none."""
    tokens = request.query.getall(LINK, [])
    return " ".join(tokens) if tokens else None


def _refusal(error: LinkRejected, otherwise: str) -> LinkExpired | LinkInvalid:
    if error.expired:
        return LinkExpired("The time of this link is over; ask who gave it to you for a new one.")
    return LinkInvalid(otherwise)


def require_full_quality(role: Role, options: ImageOptions) -> None:
    """Let pass what spends no credits, and who may spend them.

    Raises:
        FullQualityNotAllowed
    """
    if options.spends_credits and role < Role.FULL:
        raise FullQualityNotAllowed("preview=false spends credits, and this caller may not; dev_mode=true spends none.")


def require_admin(request: web.Request) -> None:
    """Let only the operator pass.

    Raises:
        AdminNotConfigured: there is no operator, because ADMIN_TOKEN is not set.
        AdminRequired: the request does not carry the operator's token.
        TooManyAuthFailures
    """
    if not request.app[SERVICES].access.credentials.admin_enabled:
        raise AdminNotConfigured("The operator must set ADMIN_TOKEN before anybody can do this.")
    if role_of(request) is not Role.ADMIN:
        raise AdminRequired("This is for the operator: send ADMIN_TOKEN's value in X-Admin-Token or as bearer token.")


def check_auth_rate_limit(request: web.Request) -> None:
    """Refuse addresses that have sent too many wrong secrets, before anything is compared.

    Raises:
        TooManyAuthFailures
    """
    wait_seconds = request.app[SERVICES].access.failures.wait_seconds(client_ip(request))
    if wait_seconds:
        raise TooManyAuthFailures(
            "Too many wrong keys came from this address.", retry_after_seconds=math.ceil(wait_seconds)
        )


def client_ip(request: web.Request) -> str:
    """Return the address by which the caller's wrong secrets are counted."""
    return request.app[SERVICES].access.callers.address(request)


def caller_fingerprint(request: web.Request) -> str:
    """Return what stands for the client and does not tell its secrets: its link, keys or session, else its address."""
    if (token := link_in(request)) is not None:
        proofs = ["link", token]
    elif given := secrets_in(request.headers):
        proofs = ["key", *given]
    elif cookie := request.cookies.get(SESSION_COOKIE):
        proofs = ["session", cookie]
    else:
        proofs = ["address", client_ip(request)]
    return request.app[SERVICES].access.credentials.fingerprint(json.dumps(proofs))


def passes_csrf_check(request: web.Request) -> bool:
    """Whether a request that takes or sets a cookie is no other site's doing: that must change nothing."""
    return request.method in _SAFE_METHODS or request.headers.get("Sec-Fetch-Site", "same-origin") in _OUR_OWN_SITE
