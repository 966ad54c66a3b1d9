"""Where requests may go: every family of addresses and every trick of a redirect."""

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from yarl import URL

from service.upstream.url_policy import MAX_REDIRECTS, Origin, Target, UrlPolicy, UrlRejected, is_private

API = URL("https://api.example.com/v3/images/1/enhanced?preview=true")
POLICY = UrlPolicy(api_origin=API.origin())


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("127.0.0.1", id="loopback"),
        pytest.param("127.255.255.254", id="loopback_end"),
        pytest.param("10.0.0.1", id="rfc1918_10"),
        pytest.param("172.16.0.1", id="rfc1918_172_first"),
        pytest.param("172.31.255.255", id="rfc1918_172_last"),
        pytest.param("192.168.1.1", id="rfc1918_192"),
        pytest.param("169.254.169.254", id="link_local_metadata"),
        pytest.param("100.64.0.1", id="carrier_nat"),
        pytest.param("100.100.100.200", id="carrier_nat_metadata"),
        pytest.param("0.0.0.0", id="unspecified"),
        pytest.param("0.1.2.3", id="this_network"),
        pytest.param("192.0.0.192", id="protocol_assignments"),
        pytest.param("192.0.2.1", id="documentation_1"),
        pytest.param("198.51.100.1", id="documentation_2"),
        pytest.param("203.0.113.1", id="documentation_3"),
        pytest.param("192.88.99.1", id="relay_of_6to4"),
        pytest.param("198.18.0.1", id="benchmarks"),
        pytest.param("224.0.0.1", id="multicast"),
        pytest.param("233.252.0.1", id="multicast_global"),
        pytest.param("240.0.0.1", id="reserved"),
        pytest.param("255.255.255.255", id="broadcast"),
        pytest.param("::1", id="v6_loopback"),
        pytest.param("::", id="v6_unspecified"),
        pytest.param("fe80::1", id="v6_link_local"),
        pytest.param("fe80::1%eth0", id="v6_link_local_zone"),
        pytest.param("fe80::1%", id="v6_empty_zone"),
        pytest.param("fc00::1", id="v6_unique_local"),
        pytest.param("fd00:ec2::254", id="v6_unique_local_metadata"),
        pytest.param("fec0::1", id="v6_site_local"),
        pytest.param("ff02::1", id="v6_multicast"),
        pytest.param("ff0e::1", id="v6_multicast_global"),
        pytest.param("2001:db8::1", id="v6_documentation"),
        pytest.param("3fff::1", id="v6_documentation_new"),
        pytest.param("100::1", id="v6_discard"),
        pytest.param("5f00::1", id="v6_segment_routing"),
        pytest.param("4000::1", id="v6_unassigned"),
        pytest.param("::ffff:127.0.0.1", id="mapped_loopback"),
        pytest.param("::ffff:7f00:1", id="mapped_loopback_hex"),
        pytest.param("::ffff:10.0.0.1", id="mapped_private"),
        pytest.param("::ffff:224.0.0.1", id="mapped_multicast"),
        pytest.param("::ffff:192.0.0.192", id="mapped_protocol_assignments"),
        pytest.param("::127.0.0.1", id="compatible_loopback"),
        pytest.param("64:ff9b::7f00:1", id="nat64"),
        pytest.param("64:ff9b:1::7f00:1", id="nat64_local"),
        pytest.param("2002:7f00:1::", id="6to4"),
        pytest.param("2001:0:7f00:1::", id="teredo"),
        pytest.param("", id="empty"),
        pytest.param("storage.example.com", id="not_an_address"),
        pytest.param("0177.0.0.1", id="octal"),
        pytest.param("127.1", id="short"),
        pytest.param("\u0661\u0662\u0667.0.0.1", id="digits_of_another_script"),
    ],
)
def test_address_that_is_not_public(address: str) -> None:
    """No private, local, reserved, translated or unreadable address passes for a public one."""
    assert is_private(address)


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("8.8.8.8", id="v4"),
        pytest.param("172.15.255.255", id="below_rfc1918"),
        pytest.param("172.32.0.0", id="above_rfc1918"),
        pytest.param("100.63.255.255", id="below_carrier_nat"),
        pytest.param("100.128.0.0", id="above_carrier_nat"),
        pytest.param("192.0.1.1", id="above_protocol_assignments"),
        pytest.param("52.218.0.1", id="photo_storage"),
        pytest.param("2606:4700:4700::1111", id="v6"),
        pytest.param("2600:1f18::1", id="v6_cloud"),
        pytest.param("2003::1", id="above_6to4"),
        pytest.param("::ffff:8.8.8.8", id="mapped"),
    ],
)
def test_address_that_is_public(address: str) -> None:
    """Public addresses are allowed, also those next to a private range."""
    assert not is_private(address)


@given(st.ip_addresses(v=4))
def test_wrapping_never_makes_a_private_address_public(address: ipaddress.IPv4Address) -> None:
    """An IPv4 address embedded in an IPv6 one is as private as the embedded one, or rejected."""
    number = int(address)
    compatible, nat64 = ipaddress.IPv6Address(number), ipaddress.IPv6Address((0x64FF9B << 96) + number)
    assert is_private(f"::ffff:{address}") is is_private(str(address))
    assert is_private(str(compatible))
    assert is_private(str(nat64))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param("ftp://files.example.com/a", "only http and https", id="ftp"),
        pytest.param("file:///etc/passwd", "only http and https", id="file"),
        pytest.param("data:image/png;base64,AA", "only http and https", id="data"),
        pytest.param("javascript:alert(1)", "only http and https", id="javascript"),
        pytest.param("/v3/orders", "only http and https can be fetched, not a relative URL", id="relative"),
        pytest.param("http://files.example.com/a", "unencrypted", id="http"),
        pytest.param("https://user@files.example.com/a", "user name", id="user"),
        pytest.param("https://user:pass@files.example.com/a", "user name", id="password"),
        pytest.param("https://:pass@files.example.com/a", "user name", id="password_only"),
        pytest.param("https://127.0.0.1/a", "127.0.0.1 is not a public one", id="loopback"),
        pytest.param("https://169.254.169.254/latest", "not a public one", id="metadata"),
        pytest.param("https://[::1]/a", "::1 is not a public one", id="v6_loopback"),
        pytest.param("https://[::ffff:10.0.0.1]/a", "not a public one", id="mapped"),
        pytest.param("https://\uff11\uff12\uff17.0.0.1/a", "ambiguous host or port", id="wide_digits"),
        pytest.param("https://\u24dbocalhost/a", "ambiguous host or port", id="circled_letter"),
        pytest.param("https://files.example.com:0/a", "ambiguous host or port", id="port_zero"),
    ],
)
def test_url_is_rejected(url: str, message: str) -> None:
    """The message names the rule, and is fit for a report."""
    with pytest.raises(UrlRejected, match=message):
        POLICY.check(URL(url, encoded=True))


@pytest.mark.parametrize(
    "url", ["https://files.example.com/a?b=c", "https://8.8.8.8/a", "https://[2606:4700::1]:8443/"]
)
def test_url_is_allowed(url: str) -> None:
    """A public https URL is returned unchanged."""
    assert POLICY.check(URL(url)) == URL(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000/a", "http://[::1]:9000/a", "https://10.0.0.1/a"])
def test_private_targets_can_be_allowed(url: str) -> None:
    """With private upstreams allowed, plain http and any address will do; the rest of the policy still stands."""
    policy = UrlPolicy(api_origin=URL("http://127.0.0.1:8999"), allow_private=True)
    assert policy.check(URL(url)) == URL(url)
    with pytest.raises(UrlRejected, match="user name"):
        policy.check(URL(url).with_user("me"))
    with pytest.raises(UrlRejected, match="only http and https"):
        policy.check(URL("ftp://127.0.0.1/a"))


@pytest.mark.parametrize(
    ("location", "target"),
    [
        pytest.param("https://files.example.com/a.jpg", "https://files.example.com/a.jpg", id="absolute"),
        pytest.param("/a/b.jpg", "https://api.example.com/a/b.jpg", id="absolute_path"),
        pytest.param("b.jpg", "https://api.example.com/v3/images/1/b.jpg", id="relative"),
        pytest.param("../b.jpg", "https://api.example.com/v3/images/b.jpg", id="parent"),
        pytest.param("?size=2", "https://api.example.com/v3/images/1/enhanced?size=2", id="query_only"),
        pytest.param("//files.example.com/a.jpg", "https://files.example.com/a.jpg", id="protocol_relative"),
        pytest.param("https://files.example.com/a.jpg#top", "https://files.example.com/a.jpg", id="fragment"),
        pytest.param("HTTPS://files.example.com/a.jpg", "https://files.example.com/a.jpg", id="scheme_any_case"),
        pytest.param("https://files.example.com:443/a.jpg", "https://files.example.com/a.jpg", id="default_port"),
        pytest.param("https://xn--bcher-kva.example/a", "https://xn--bcher-kva.example/a", id="international"),
    ],
)
def test_redirect_is_resolved(location: str, target: str) -> None:
    """A Location is resolved against the address that sent it (RFC 9110 section 10.2.2)."""
    assert str(POLICY.resolve_redirect(API, location, 0)) == target


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("X-Amz-Signature=ab%2Bcd%2Fef%3D&X-Amz-Date=2026%3A01", id="capital_hex"),
        pytest.param("sig=ab%2bcd%2fef%3d", id="small_hex"),
        pytest.param("a=%41%7e&b=%20+c", id="needless_escapes"),
        pytest.param("b=2&a=1&a=&=x&&", id="order_and_empties"),
        pytest.param("filename=%E3%82%AD%22;x,y", id="delimiters"),
    ],
)
def test_signed_target_survives_byte_for_byte(query: str) -> None:
    """A signature covers the address as it was written: not one escape may be rewritten."""
    path = "/bucket/a%2Fb%2fc%20d+e/~/%7Ef.jpg"
    target = POLICY.resolve_redirect(API, f"https://files.example.com{path}?{query}#fragment", 0)

    assert target.raw_path_qs == f"{path}?{query}"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        pytest.param(None, "without a target", id="no_location"),
        pytest.param("", "without a target", id="empty_location"),
        pytest.param("http://files.example.com/a.jpg", "from https to http", id="downgrade"),
        pytest.param("http://api.example.com/v3", "from https to http", id="downgrade_same_host"),
        pytest.param("ftp://files.example.com/a.jpg", "only http and https", id="ftp"),
        pytest.param("file:///etc/passwd", "only http and https", id="file"),
        pytest.param("data:text/html,x", "only http and https", id="data"),
        pytest.param("javascript:alert(1)", "only http and https", id="javascript"),
        pytest.param("https://user:pass@files.example.com/", "user name", id="user_and_password"),
        pytest.param("https://api.example.com@files.example.org/", "user name", id="host_as_user"),
        pytest.param("//127.0.0.1/a.jpg", "not a public one", id="protocol_relative_private"),
        pytest.param("https://[::1]/", "not a public one", id="v6_loopback"),
        pytest.param("https://[fe80::1%25eth0]/", "not a public one", id="v6_zone"),
        pytest.param("https://2130706433/", "not a public one", id="decimal"),
        pytest.param("https://0x7f000001/", "not a public one", id="hexadecimal"),
        pytest.param("https://0177.0.0.1/", "not a public one", id="octal"),
        pytest.param("https://127.1/", "not a public one", id="short"),
        pytest.param("https://127.0.0.1./", "not a public one", id="trailing_dot"),
        pytest.param("https://127.0.0.0x1/", "not a public one", id="hexadecimal_last_part"),
        pytest.param("https://１２７.０.０.１/", "invalid URL", id="wide_digits"),  # noqa: RUF001
        pytest.param("https://127。0。0。1/", "invalid URL", id="ideographic_dots"),
        pytest.param("https://bücher.example/", "invalid URL", id="host_not_encoded"),
        pytest.param("https://files.example.com:port/", "invalid URL", id="port_of_letters"),
        pytest.param("https://files.example.com:99999/", "invalid URL", id="port_too_large"),
        pytest.param("https://files.example.com:0/", "invalid URL", id="port_zero"),
        pytest.param("https://[::1/", "invalid URL", id="open_bracket"),
        pytest.param("https://files.example.com\r\nX-Api-Key: a/", "invalid URL", id="header_injection"),
    ],
)
def test_redirect_is_rejected(location: str | None, message: str) -> None:
    """A rejected redirect is always the same exception class, and so one image's failure."""
    with pytest.raises(UrlRejected, match=message):
        POLICY.resolve_redirect(API, location, 0)


@given(st.one_of(st.text(), st.text("/\\@:#?[]%.0x1a-", max_size=20).map("https:".__add__)))
def test_no_location_is_a_fault(location: str) -> None:
    """Any text in Location leads to a public https URL or is rejected."""
    try:
        target = POLICY.resolve_redirect(API, location, 0)
    except UrlRejected:
        return
    assert (target.scheme, target.user, target.raw_fragment) == ("https", None, "")
    assert target.raw_host


SCHEMES = ["https://", "http://", "HTTPS://", "ftp://", "//", "https:", ""]
HOSTS = [
    "files.example.com", "api.example.com", "FILES.example.net", "a-b.storage.example.org", "xn--bcher-kva.example",
    "8.8.8.8", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "[2606:4700::1]", "[::1]", "localhost", "a..b", "-",
    "a_b", "u@a.example", "\u00e9.example", "files.example.com.", "",
]  # fmt: skip
PORTS = ["", ":", ":443", ":80", ":8443", ":0", ":00443", ":65535", ":65536", ":99999", ":123456", ":x"]
PATH_PARTS = [
    "/", "//", "/a", "a.jpg", ".", "..", "/.", "/..", "/../", "/.a", "?", "?a=b&c=d%2Fe", "??", "#f", "%2F", "%2e",
    "%", "%zz", "~", "!$&'()*+,;=:@", "[", "]", "|", "\\", " ", "\t", "\r\n", "\u00e9", '"', "<", "^", "`", "{",
    "X-Amz-Signature=ab%2bcd",
]  # fmt: skip
LOCATIONS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(SCHEMES),
    st.sampled_from(HOSTS),
    st.sampled_from(PORTS),
    st.lists(st.sampled_from(PATH_PARTS) | st.text(max_size=2), max_size=6).map("".join),
)
PLAIN = st.builds(
    "{}{}".format,
    st.sampled_from(["", "https://files.example.com", "https://api.example.com:443", "http://127.0.0.1:8999"]),
    st.from_regex(r"/[!$&'()*+,;=:@?%A-Za-z0-9._~/-]{0,12}", fullmatch=True),
)
PATHS = st.lists(st.sampled_from(PATH_PARTS) | st.text(max_size=2), max_size=6).map("".join)
POLICIES = [
    UrlPolicy(api_origin=API.origin()),
    UrlPolicy(api_origin=API.origin(), allow_private=True),
    UrlPolicy(api_origin=API.origin(), allowed_hosts=("files.example.net", "*.storage.example.org")),
]
CURRENT = [
    Target(Origin("https", "api.example.com", 443, is_api=True), "/v3/images/1/enhanced?preview=true"),
    Target(Origin("https", "2606:4700::1", 8443, is_api=False), "/a%2Fb?sig=a%2bb"),
    Target(Origin("http", "127.0.0.1", 8999, is_api=False), "/"),
    Target(Origin("https", "files.example.net", 443, is_api=False), "/a"),
]


def url_of(target: Target) -> URL:
    """Return a target as a URL."""
    host = f"[{target.origin.host}]" if ":" in target.origin.host else target.origin.host
    return URL(f"{target.origin.scheme}://{host}:{target.origin.port}{target.path}", encoded=True)


def outcome_of(redirect: Callable[[], Target]) -> Target | None:
    """Return the target of a redirect, or ``None`` if it is rejected."""
    try:
        return redirect()
    except UrlRejected:
        return None


@settings(max_examples=1000)
@example(POLICIES[0], CURRENT[0], "/a?", 0)
@example(POLICIES[0], CURRENT[0], "/a??", 0)
@example(POLICIES[0], CURRENT[0], "https://files.example.com/a?", 0)
@given(
    st.sampled_from(POLICIES),
    st.sampled_from(CURRENT),
    PLAIN | LOCATIONS | PATHS | st.none(),
    st.integers(0, MAX_REDIRECTS),
)
def test_plain_redirects_are_resolved_like_any_other(
    policy: UrlPolicy, current: Target, location: str | None, hops: int
) -> None:
    """The short way for plain locations gives the target that resolving the whole URL gives, or rejects it too."""
    assume(outcome_of(lambda: policy.target(url_of(current))) == current)  # what sent the redirect was allowed
    resolved = outcome_of(lambda: policy.target(policy.resolve_redirect(url_of(current), location, hops)))
    assert outcome_of(lambda: policy.redirect(current, location, hops)) == resolved


def test_many_origins_are_resolved() -> None:
    """More origins than are cached, and the same one once more, have the same target as before."""
    for round_ in range(2):
        for number in range(200):
            target = POLICY.redirect(CURRENT[0], f"https://s{number}.example.com/a?{round_}", 0)
            assert target == Target(Origin("https", f"s{number}.example.com", 443, is_api=False), f"/a?{round_}")
    assert POLICY.redirect(CURRENT[1], "https://api.example.com/b", 0).origin.is_api


def test_redirect_from_http_may_stay() -> None:
    """Where plain http is allowed at all, a redirect may keep it or step up to https."""
    policy = UrlPolicy(api_origin=URL("http://127.0.0.1:8999"), allow_private=True)
    assert policy.resolve_redirect(URL("http://127.0.0.1:8999/a"), "http://127.0.0.1:9000/b", 0) == URL(
        "http://127.0.0.1:9000/b"
    )
    assert policy.resolve_redirect(URL("http://127.0.0.1:8999/a"), "https://127.0.0.1/b", 0) == URL(
        "https://127.0.0.1/b"
    )


def test_redirects_are_counted() -> None:
    """The last permitted hop is followed, the next is rejected, so a loop ends."""
    assert POLICY.resolve_redirect(API, str(API), MAX_REDIRECTS - 1) == API
    with pytest.raises(UrlRejected, match=f"more than {MAX_REDIRECTS} redirects"):
        POLICY.resolve_redirect(API, str(API), MAX_REDIRECTS)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        pytest.param("files.example.net", True, id="exact"),
        pytest.param("FILES.example.net", True, id="any_case"),
        pytest.param("files.example.net.", True, id="root_dot"),
        pytest.param("a.storage.example.org", True, id="sub_domain"),
        pytest.param("a.b.storage.example.org", True, id="deep_sub_domain"),
        pytest.param("api.example.com", True, id="api_itself"),
        pytest.param("storage.example.org", False, id="domain_of_a_wildcard"),
        pytest.param("evil-storage.example.org", False, id="prefix"),
        pytest.param("evilfiles.example.net", False, id="prefix_of_exact"),
        pytest.param("a.files.example.net", False, id="sub_domain_of_exact"),
        pytest.param("files.example.net.evil.example", False, id="suffix"),
        pytest.param("a.storage.example.org.evil.example", False, id="suffix_of_wildcard"),
        pytest.param("example.net", False, id="parent"),
        pytest.param("files-example.net", False, id="other_punctuation"),
    ],
)
def test_allowed_hosts(host: str, *, allowed: bool) -> None:
    """A list of hosts lets through what it names, whole domains by wildcard, the API, and no look-alike."""
    policy = UrlPolicy(
        api_origin=API.origin(), allowed_hosts=("files.example.net", "*.storage.example.org", "127.0.0.1")
    )
    if allowed:
        assert policy.resolve_redirect(API, f"https://{host}/a", 0).host
    else:
        with pytest.raises(UrlRejected, match="UPSTREAM_ALLOWED_HOSTS"):
            policy.resolve_redirect(API, f"https://{host}/a", 0)


def test_allowed_host_is_still_no_private_address() -> None:
    """Naming a private address in the list does not open it."""
    policy = UrlPolicy(api_origin=API.origin(), allowed_hosts=("127.0.0.1",))
    with pytest.raises(UrlRejected, match="not a public one"):
        policy.check(URL("https://127.0.0.1/a"))


@pytest.mark.parametrize(
    ("url", "same"),
    [
        pytest.param("https://api.example.com/other?x=1#y", True, id="path_query_fragment"),
        pytest.param("https://api.example.com:443/", True, id="default_port"),
        pytest.param("https://API.Example.COM/", True, id="case"),
        pytest.param("https://user:pass@api.example.com/", True, id="user"),
        pytest.param("https://api.example.com:8443/", False, id="port"),
        pytest.param("http://api.example.com/", False, id="scheme"),
        pytest.param("http://api.example.com:443/", False, id="scheme_same_port"),
        pytest.param("https://example.com/", False, id="parent"),
        pytest.param("https://a.api.example.com/", False, id="sub_domain"),
        pytest.param("https://api.example.com.evil.example/", False, id="suffix"),
        pytest.param("https://api.example.com./", False, id="root_dot"),
    ],
)
def test_the_api_is_its_origin(url: str, *, same: bool) -> None:
    """Only the same scheme, host and port are the API's: the key goes nowhere else."""
    assert POLICY.is_api(URL(url)) is same
