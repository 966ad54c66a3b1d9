"""Encodes GET requests: the lines that all requests to an origin share are encoded once."""

from collections.abc import Mapping

from service.monitoring.tracing import Trace, traceparent_of
from service.upstream.http.session import COMMON_HEADERS
from service.upstream.url_policy import Origin, Target

_DEFAULT_PORTS = {"http": 80, "https": 443}


class RequestTemplate:
    """The header fields of requests made on behalf of one client request.

    ``api_headers``, the key among them, and what identifies the client request go to the API's origin only.
    """

    def __init__(
        self, headers: Mapping[str, str], api_headers: Mapping[str, str], *, request_id: str | None, trace: Trace | None
    ) -> None:
        identifying = {"X-Request-ID": request_id} if request_id else {}
        self._everywhere = encode_fields({**COMMON_HEADERS, **headers})
        self._api_only = encode_fields({**api_headers, **identifying})
        self._trace = trace
        self._blocks: dict[Origin, bytes] = {}  # as many as an archive meets origins; the policy bounds what they are

    def encode(self, target: Target, extra: bytes = b"") -> bytes:
        """Return the request for a target (RFC 9112 section 3); ``extra`` are further encoded fields."""
        origin = target.origin
        block = self._blocks.get(origin)
        if block is None:
            host = f"[{origin.host}]" if ":" in origin.host else origin.host
            port = "" if _DEFAULT_PORTS.get(origin.scheme) == origin.port else f":{origin.port}"
            block = b" HTTP/1.1\r\n" + encode_fields({"Host": host + port}) + self._everywhere
            if origin.is_api:
                block += self._api_only
            self._blocks[origin] = block
        if origin.is_api and self._trace is not None:
            extra += encode_fields({"traceparent": traceparent_of(self._trace)})
        return b"GET " + target.path.encode("ascii") + block + extra + b"\r\n"


def encode_fields(headers: Mapping[str, str]) -> bytes:
    """Return header fields as lines (RFC 9112 section 5).

    Raises:
        ValueError: a value would begin another line.
    """
    text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if not len(headers) == text.count("\n") == text.count("\r"):
        raise ValueError("a header value with a line break")
    return text.encode()
