"""Opens aiohttp's client session as the service needs it."""

import ssl

import aiohttp

from service.upstream.http.connector import GuardedConnector
from service.upstream.http.resolver import PublicResolver

# Signed redirect targets with a session token come close to aiohttp's default of 8,190 bytes for a header line.
MAX_HEADER_BYTES = 32 * 1024
COMMON_HEADERS = {"User-Agent": "autoenhance-batch", "Accept-Encoding": "identity"}


class ConnectionBroken(Exception):
    """The connection broke before a response began."""


async def _disable_retry(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from repeating a GET whose connection broke (client middleware).

    It would request a signed target a second time and hide an attempt from the retry policy, which does better: it
    starts again at the API. The errors that aiohttp repeats on are replaced by one that it lets through.
    """
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise ConnectionBroken(str(error)) from error


def open_session(
    *, allow_private: bool, connect_timeout_seconds: float, tls: ssl.SSLContext | None = None
) -> aiohttp.ClientSession:
    """Return a client session, which its user closes. ``tls`` is aiohttp's own unless given.

    No total timeout (a large image to a slow client may take hours), no cookies, no proxies from the environment,
    and no decoding: the bytes go into the archive as they are on the wire.
    """
    return aiohttp.ClientSession(
        connector=GuardedConnector(PublicResolver(allow_private=allow_private), tls),
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        middlewares=(_disable_retry,),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        headers=COMMON_HEADERS,
    )
