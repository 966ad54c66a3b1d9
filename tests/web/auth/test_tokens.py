"""Signed tokens of sessions and links: expiry, key rotation, tampering."""

import hashlib
import hmac
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer, URLSafeTimedSerializer
from itsdangerous.encoding import base64_decode

from service.sandbox import DEMO_ORDER_ID
from service.web.auth.credentials import Credentials, Role, ServiceKey
from service.web.auth.tokens import LinkRejected, LinkTokens, SessionTokens
from tests.web.auth.conftest import ADMIN, NEW, OLD, OLD_SIGNING, SIGNING


def test_signatures_use_sha_256() -> None:
    """Links and sessions are signed with HMAC-SHA-256; a SHA-1 signature with the same key is rejected."""
    credentials = Credentials([ServiceKey(NEW)])
    sessions, links = SessionTokens(credentials, ttl_seconds=60), LinkTokens([SIGNING], clock=time.time)
    cookie = sessions.create(NEW)
    token, _ = links.create(DEMO_ORDER_ID, [], ttl_seconds=60, full=False)
    assert cookie is not None
    assert sessions.verify(cookie) is Role.DOWNLOAD
    assert links.verify(token, DEMO_ORDER_ID, []) is Role.DOWNLOAD
    for signed in (cookie, token):
        assert len(base64_decode(signed.rpartition(".")[2])) == hashlib.sha256().digest_size
    weak_cookie = URLSafeTimedSerializer(credentials.session_key, "session").dumps(credentials.fingerprint(NEW))
    assert sessions.verify(weak_cookie) is None
    weak_token = URLSafeSerializer(SIGNING, "link").dumps(
        URLSafeSerializer(SIGNING).load_payload(token.encode().rpartition(b".")[0])
    )
    with pytest.raises(LinkRejected):
        links.verify_signature(weak_token)


def test_session_expires_and_ends_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session expires, ends at once when its key is removed, and is rejected after tampering."""
    credentials = Credentials([ServiceKey(OLD), ServiceKey(NEW)])
    sessions = SessionTokens(credentials, ttl_seconds=60)
    cookie = sessions.create(NEW)
    assert cookie is not None
    assert sessions.verify(cookie) is Role.DOWNLOAD
    assert SessionTokens(Credentials([ServiceKey(OLD), ServiceKey(NEW)]), ttl_seconds=60).verify(cookie), (
        "on each replica"
    )
    assert SessionTokens(Credentials([ServiceKey(OLD)]), ttl_seconds=60).verify(cookie) is None
    signed, _, signature = cookie.rpartition(".")
    # The first character: of the last one, base64 uses only some of the bits.
    assert sessions.verify(f"{signed}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}") is None
    assert sessions.create("another-key-of-clients") is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 62)
    assert sessions.verify(cookie) is None


def test_session_key_is_derived_slowly() -> None:
    """A client with a cookie and its key pays for every guess at the other secrets: the signing key uses scrypt."""
    secrets = (NEW, ADMIN)
    credentials = Credentials([ServiceKey(NEW)], ADMIN)
    quick = hashlib.sha256("\0".join(secrets).encode()).digest()
    slow = hashlib.scrypt("\0".join(secrets).encode(), salt=b"batch sessions", n=2**14, r=8, p=1)
    assert credentials.session_key not in {hmac.digest(quick, b"session", "sha256"), quick}
    assert credentials.session_key == hmac.digest(slow, b"session", "sha256")


def test_link_expires_and_keys_rotate() -> None:
    """A link expires; an old key verifies as long as it is listed."""
    now = [1000.0]
    old = LinkTokens([OLD_SIGNING], clock=lambda: now[0])
    token, expires_at = old.create(DEMO_ORDER_ID, [("format", "png")], ttl_seconds=60, full=True)
    assert expires_at == 1060
    both = LinkTokens([SIGNING, OLD_SIGNING], clock=lambda: now[0])
    assert both.verify(token, DEMO_ORDER_ID, [("format", "png")]) is Role.FULL
    newer, _ = both.create(DEMO_ORDER_ID, [], ttl_seconds=60, full=False)
    assert LinkTokens([SIGNING], clock=lambda: now[0]).verify(newer, DEMO_ORDER_ID.upper(), []) is Role.DOWNLOAD
    with pytest.raises(LinkRejected, match="invalid"):
        LinkTokens([SIGNING], clock=lambda: now[0]).verify(token, DEMO_ORDER_ID, [("format", "png")])
    now[0] = 1060
    with pytest.raises(LinkRejected, match="expired"):
        both.verify(token, DEMO_ORDER_ID, [("format", "png")])


@given(st.integers(0, 200), st.characters(codec="ascii"))
def test_modified_token_is_rejected(position: int, character: str) -> None:
    """Replacing any character of a token invalidates it, unless it decodes to the same bytes."""
    links = LinkTokens([SIGNING], clock=lambda: 0.0)
    token, _ = links.create(DEMO_ORDER_ID, [], ttl_seconds=60, full=False)
    position %= len(token) - 1  # the last holds two bits that base64 does not use
    changed = token[:position] + character + token[position + 1 :]
    if changed == token:
        return
    with pytest.raises(LinkRejected):
        links.verify(changed, DEMO_ORDER_ID, [])


@given(st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), max_size=4), st.text(max_size=4))
def test_link_signature_covers_every_parameter(query: list[tuple[str, str]], more: str) -> None:
    """The order of parameters does not matter, everything else does."""
    links = LinkTokens([SIGNING], clock=lambda: 0.0)
    token, _ = links.create(DEMO_ORDER_ID, query, ttl_seconds=60, full=False)
    assert links.verify(token, DEMO_ORDER_ID, reversed(query))
    with pytest.raises(LinkRejected):
        links.verify(token, DEMO_ORDER_ID, [*query, (more, more)])
