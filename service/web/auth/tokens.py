"""Signed, expiring tokens: session cookies and download links."""

import hashlib
import hmac
import math
from collections.abc import Callable, Iterable, Sequence

from itsdangerous import BadData, SignatureExpired, URLSafeSerializer, URLSafeTimedSerializer

from service.web.auth.credentials import Credentials, Role, encode_text

# HMAC and the derivation of its key; itsdangerous defaults to SHA-1, which some platforms no longer offer.
_SIGNATURE_OPTIONS = {"digest_method": hashlib.sha256}
# Our tokens are shorter. What is cut here fails verification, and costs little.
MAX_TOKEN_CHARACTERS = 1024


class SessionTokens:
    """Signs and verifies session cookies. They hold the fingerprint of a key, never the key."""

    def __init__(self, credentials: Credentials, *, ttl_seconds: int) -> None:
        self._credentials = credentials
        self._serializer = URLSafeTimedSerializer(
            credentials.session_key, salt="session", signer_kwargs=_SIGNATURE_OPTIONS
        )
        self.ttl_seconds = ttl_seconds

    def create(self, secret: str) -> str | None:
        """Return the cookie value for a valid secret, or ``None``."""
        if self._credentials.role_of(secret) is None:
            return None
        return self._serializer.dumps(self._credentials.fingerprint(secret))

    def verify(self, cookie: str) -> Role | None:
        """Return the role of a session; ``None`` if it is forged, expired, or its key was removed."""
        try:
            fingerprint = self._serializer.loads(cookie[:MAX_TOKEN_CHARACTERS], max_age=self.ttl_seconds)
        except (BadData, ValueError):  # ValueError: the text cannot be encoded
            return None
        return self._credentials.role_by_fingerprint(fingerprint) if isinstance(fingerprint, str) else None


class LinkRejected(Exception):
    """A link token that does not verify; ``expired`` if it once did."""

    def __init__(self, *, expired: bool = False) -> None:
        super().__init__("expired" if expired else "invalid")
        self.expired = expired


class LinkTokens:
    """Signs and verifies link tokens: one download, with exactly its parameters, until an expiry time.

    The first key signs, each verifies. A token holds its expiry (seconds since 1970), whether credits may be spent, and
    a digest of the download. ``clock`` returns seconds since 1970.
    """

    def __init__(self, signing_keys: Sequence[str], *, clock: Callable[[], float]) -> None:
        # itsdangerous signs with the last of its keys.
        keys = list(reversed(signing_keys))
        self._serializer = URLSafeSerializer(keys, salt="link", signer_kwargs=_SIGNATURE_OPTIONS) if keys else None
        self._clock = clock

    @property
    def enabled(self) -> bool:
        """Whether there is a key to sign with."""
        return self._serializer is not None

    def create(
        self, order_id: str, query: Iterable[tuple[str, str]], *, ttl_seconds: int, full: bool
    ) -> tuple[str, int]:
        """Return a token for an order's archive with these parameters, and its expiry time."""
        if self._serializer is None:
            raise LinkRejected
        expires_at = math.ceil(self._clock()) + ttl_seconds
        token = self._serializer.dumps([expires_at, int(full), _digest(order_id, query)])
        return token, expires_at

    def verify(self, token: str, order_id: str, query: Iterable[tuple[str, str]]) -> Role:
        """Return the role that a token grants for one download.

        Raises:
            LinkRejected: the token is forged or expired, or was signed for another order or other parameters.
        """
        expires_at, full, digest = self._load(token)
        if not hmac.compare_digest(digest, _digest(order_id, query)):
            raise LinkRejected
        self._check_expiry(expires_at)
        return Role.FULL if full else Role.DOWNLOAD

    def verify_signature(self, token: str) -> None:
        """Check a token's signature and expiry, whatever download it is for.

        Raises:
            LinkRejected: the token is forged or expired.
        """
        self._check_expiry(self._load(token)[0])

    def _load(self, token: str) -> tuple[int, bool, str]:
        if self._serializer is None:
            raise LinkRejected
        try:
            expires_at, full, digest = self._serializer.loads(token[:MAX_TOKEN_CHARACTERS])
        except (BadData, SignatureExpired, ValueError, TypeError) as error:
            raise LinkRejected from error
        return expires_at, bool(full), str(digest)

    def _check_expiry(self, expires_at: int) -> None:
        if self._clock() >= expires_at:
            raise LinkRejected(expired=True)


def _digest(order_id: str, query: Iterable[tuple[str, str]]) -> str:
    # Length-prefixed, so that no two different requests are encoded alike.
    fields = [order_id.lower(), *(part for pair in sorted(query) for part in pair)]
    return hashlib.sha256(encode_text("".join(f"{len(field)}:{field}" for field in fields))).hexdigest()
