"""Requests as they are sent: one line, and the fields that belong to their origin."""

import pytest
from yarl import URL

from service.monitoring.tracing import Trace
from service.upstream.http.request import RequestTemplate, encode_fields
from service.upstream.http.session import COMMON_HEADERS
from service.upstream.url_policy import UrlPolicy

POLICY = UrlPolicy(URL("http://api.example"), allow_private=True)
COMMON = [f"{name}: {value}" for name, value in COMMON_HEADERS.items()]


def template(trace: Trace | None = None) -> RequestTemplate:
    """Return a template of one client request."""
    return RequestTemplate({"Accept": "*/*"}, {"x-api-key": "key"}, request_id="r1", trace=trace)


def lines_of(url: str, extra: bytes = b"", trace: Trace | None = None) -> list[str]:
    """Return the lines of a request."""
    return template(trace).encode(POLICY.target(URL(url, encoded=True)), extra).decode("ascii").split("\r\n")


def test_request_is_one_line_and_its_fields() -> None:
    """Illegal characters of the URL are encoded; others are sent as they are."""
    extra = encode_fields({"Range": "bytes=5-", "If-Range": '"tag"'})
    request_line, *fields = lines_of("http://storage.example:8080/a%2Fb c\x01d?sig=a%2Bb&n=\u00e9", extra)
    assert request_line == "GET /a%2Fb%20c%01d?sig=a%2Bb&n=%C3%A9 HTTP/1.1"
    assert fields == [
        "Host: storage.example:8080", *COMMON, "Accept: */*", "Range: bytes=5-", 'If-Range: "tag"', "", "",
    ]  # fmt: skip


def test_key_and_request_id_go_to_the_api_alone() -> None:
    """What is the API's own business is not sent to its storage, not even on another port of its host."""
    assert {"x-api-key: key", "X-Request-ID: r1"} <= set(lines_of("http://api.example/v3"))
    for url in ("http://storage.example/", "http://api.example:8080/", "https://api.example/"):
        assert {"x-api-key: key", "X-Request-ID: r1"}.isdisjoint(lines_of(url))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://storage.example/", "storage.example"),
        ("http://storage.example:80/", "storage.example"),
        ("https://storage.example:443/", "storage.example"),
        ("http://storage.example:443/", "storage.example:443"),
        ("https://[2606:4700::1]:8443/", "[2606:4700::1]:8443"),
    ],
)
def test_host_has_a_port_unless_it_is_the_default(url: str, host: str) -> None:
    """The Host field is the URL's authority (RFC 9110 section 7.2)."""
    assert lines_of(url)[1] == f"Host: {host}"


def test_origins_do_not_share_their_fields() -> None:
    """One template encodes requests to several origins, in any order."""
    one = template()
    urls = ["http://storage.example/a", "http://api.example/b", "http://storage.example/c"]
    encoded = [one.encode(POLICY.target(URL(url))) for url in urls]
    assert [b"x-api-key" in request for request in encoded] == [False, True, False]
    assert [request.split(b"\r\n")[1] for request in encoded] == [
        b"Host: storage.example", b"Host: api.example", b"Host: storage.example",
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nX: y", "a\rX: y"])
def test_header_value_with_a_line_break_is_rejected(value: str) -> None:
    """No value can put another field, or another request, behind its own."""
    with pytest.raises(ValueError, match="line break"):
        encode_fields({"X-Request-ID": value})
    with pytest.raises(ValueError, match="line break"):
        RequestTemplate({}, {}, request_id=value, trace=None)
