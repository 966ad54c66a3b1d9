"""Who may do what: keys, the operator's token, sessions and links. Decisions only; ``access`` applies them.

Three roles, each with all that the one before may do::

    download   see orders, download previews
    full       also download in full quality, which spends credits
    admin      everything

Keys are compared in constant time and never leave this file: a session names its key by a keyed fingerprint, so that it
ends when the key is taken out of the settings.
"""

import hashlib
import hmac
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from itsdangerous import BadData, SignatureExpired, URLSafeSerializer, URLSafeTimedSerializer

from service.web.auth.client_ip import ClientAddresses

_BEARER = "bearer "
# How long failures count, and how many addresses are remembered: a flood of addresses forgets the oldest.
FAILURE_WINDOW_SECONDS = 60.0
ADDRESSES_REMEMBERED = 10_000
# 16 MiB and some 50 ms, once at the start, and for each guess (RFC 7914 section 2).
_SCRYPT_COST = 2**14
# HMAC and the derivation of its key; itsdangerous would take SHA-1, which some machines do not offer any more.
_SIGNED = {"digest_method": hashlib.sha256}
# More than this is no token of ours; it is not worth a computation.
MAX_TOKEN_CHARACTERS = 1024


class Role(IntEnum):
    """What a caller may do; a higher one may do all that a lower one may."""

    DOWNLOAD = 1
    FULL = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """The role as callers read it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A caller's key, and whether it may spend credits."""

    secret: str
    full: bool = False


class Credentials:
    """Every secret that opens something, and what it opens.

    Without service keys everybody may download; ``allow_full_quality`` lets everybody who may download also spend
    credits. ``open_to_all`` makes everybody the operator: for the sandbox only.
    """

    def __init__(
        self,
        service_keys: Sequence[ServiceKey] = (),
        admin_token: str | None = None,
        *,
        allow_full_quality: bool = False,
        open_to_all: bool = False,
    ) -> None:
        self._least = Role.FULL if allow_full_quality else Role.DOWNLOAD
        roles = [(key.secret, Role.FULL if key.full else self._least) for key in service_keys]
        if admin_token:
            roles.append((admin_token, Role.ADMIN))
        self._salt = _stretched("\0".join(secret for secret, _ in roles))
        self._roles = [(self.fingerprint(secret), role) for secret, role in roles]
        self.keys_required = bool(service_keys)
        self.admin_enabled = bool(admin_token) or open_to_all
        self.has_secrets = bool(roles)
        self._open_to_all = open_to_all

    @property
    def anonymous(self) -> Role | None:
        """What somebody without a key may do."""
        if self._open_to_all:
            return Role.ADMIN
        return None if self.keys_required else self._least

    @property
    def session_key(self) -> bytes:
        """Return the key that signs sessions: the same on every replica, another one when any secret changes."""
        return hmac.digest(self._salt, b"session", "sha256")

    def fingerprint(self, secret: str) -> str:
        """Return what stands for a secret and does not tell it."""
        return hmac.new(self._salt, _bytes_of(secret), "sha256").hexdigest()

    def role_of(self, secret: str) -> Role | None:
        """Return what a secret opens."""
        return self.role_by_fingerprint(self.fingerprint(secret))

    def role_by_fingerprint(self, fingerprint: str) -> Role | None:
        """Return what the secret with this fingerprint opens. All are compared, whatever the first ones say."""
        given = _bytes_of(fingerprint)
        found = [role for known, role in self._roles if hmac.compare_digest(known.encode(), given)]
        return max(found, default=None)


def secrets_in(headers: Mapping[str, str]) -> list[str]:
    """Return the secrets that a request's headers carry: X-API-Key, X-Admin-Token, and a bearer token (RFC 6750)."""
    authorization = headers.get("Authorization", "")
    bearer = authorization[len(_BEARER) :].strip() if authorization.lower().startswith(_BEARER) else ""
    given = (headers.get("X-API-Key", ""), headers.get("X-Admin-Token", ""), bearer)
    return [secret for secret in given if secret]


class Sessions:
    """Signed, expiring proofs that a browser has signed in. They hold a fingerprint, never a key."""

    def __init__(self, credentials: Credentials, *, seconds: int) -> None:
        self._credentials = credentials
        self._serializer = URLSafeTimedSerializer(credentials.session_key, salt="session", signer_kwargs=_SIGNED)
        self.seconds = seconds

    def start(self, secret: str) -> str | None:
        """Return the value of the cookie for who knows a secret, or ``None``."""
        if self._credentials.role_of(secret) is None:
            return None
        return self._serializer.dumps(self._credentials.fingerprint(secret))

    def role_of(self, cookie: str) -> Role | None:
        """Return what a session may do; ``None`` if it is forged, over, or its key is no more."""
        try:
            fingerprint = self._serializer.loads(cookie[:MAX_TOKEN_CHARACTERS], max_age=self.seconds)
        except (BadData, ValueError):  # the second: it is no text that could be encoded
            return None
        return self._credentials.role_by_fingerprint(fingerprint) if isinstance(fingerprint, str) else None


class LinkRejected(Exception):
    """A link's token does not open what it is used for; ``expired`` tells whether it once did."""

    def __init__(self, *, expired: bool = False) -> None:
        super().__init__("expired" if expired else "invalid")
        self.expired = expired


class Links:
    """Tokens that open one download, with exactly its parameters, for a time. The first key signs, each verifies.

    A token holds its end (seconds since 1970), whether credits may be spent, and a digest of what it opens.
    """

    def __init__(self, signing_keys: Sequence[str], *, clock: Callable[[], float]) -> None:
        # itsdangerous signs with the last of its keys.
        keys = list(reversed(signing_keys))
        self._serializer = URLSafeSerializer(keys, salt="link", signer_kwargs=_SIGNED) if keys else None
        self._clock = clock

    @property
    def enabled(self) -> bool:
        """Whether there is a key to sign with."""
        return self._serializer is not None

    def make(self, order_id: str, query: Iterable[tuple[str, str]], *, seconds: int, full: bool) -> tuple[str, int]:
        """Return the token that opens an order's archive with these parameters, and its end."""
        if self._serializer is None:
            raise LinkRejected
        expires_at = math.ceil(self._clock()) + seconds
        token = self._serializer.dumps([expires_at, int(full), _digest(order_id, query)])
        return token, expires_at

    def role_of(self, token: str, order_id: str, query: Iterable[tuple[str, str]]) -> Role:
        """Return what a token allows.

        Raises:
            LinkRejected: it was not signed by us for this order and these parameters, or its time is over.
        """
        expires_at, full, digest = self._read(token)
        if not hmac.compare_digest(digest, _digest(order_id, query)):
            raise LinkRejected
        self._refuse_expired(expires_at)
        return Role.FULL if full else Role.DOWNLOAD

    def check(self, token: str) -> None:
        """Refuse a token that opens nothing, whatever it is used for.

        Raises:
            LinkRejected: it was not signed by us, or its time is over.
        """
        self._refuse_expired(self._read(token)[0])

    def _read(self, token: str) -> tuple[int, bool, str]:
        if self._serializer is None:
            raise LinkRejected
        try:
            expires_at, full, digest = self._serializer.loads(token[:MAX_TOKEN_CHARACTERS])
        except (BadData, SignatureExpired, ValueError, TypeError) as error:
            raise LinkRejected from error
        return expires_at, bool(full), str(digest)

    def _refuse_expired(self, expires_at: int) -> None:
        if self._clock() >= expires_at:
            raise LinkRejected(expired=True)


class AuthFailureLimit:
    """Counts wrong secrets by address, so that nobody can try them all. ``clock`` counts seconds."""

    def __init__(self, per_window: int, clock: Callable[[], float]) -> None:
        self._limit = per_window
        self._clock = clock
        # By address: when its window began, and the failures in it; the oldest window first.
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def wait_seconds(self, address: str) -> float:
        """Return how long an address must wait before it may try again; 0 if it need not."""
        began, count = self._failures.get(address, (0.0, 0))
        left = began + FAILURE_WINDOW_SECONDS - self._clock()
        return left if count >= self._limit and left > 0 else 0.0

    def note(self, address: str) -> None:
        """Count a failure."""
        now = self._clock()
        began, count = self._failures.get(address, (now, 0))
        if now >= began + FAILURE_WINDOW_SECONDS:
            began, count = now, 0
            self._failures.pop(address, None)
        self._failures[address] = began, count + 1
        while len(self._failures) > ADDRESSES_REMEMBERED:
            self._failures.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Access:
    """How one process decides."""

    credentials: Credentials
    sessions: Sessions
    links: Links
    failures: AuthFailureLimit
    callers: ClientAddresses
    max_link_seconds: int


def _digest(order_id: str, query: Iterable[tuple[str, str]]) -> str:
    # Length-prefixed, so that no two different requests are written alike.
    written = [order_id.lower(), *(part for pair in sorted(query) for part in pair)]
    return hashlib.sha256(_bytes_of("".join(f"{len(part)}:{part}" for part in written))).hexdigest()


def _stretched(secrets: str) -> bytes:
    """Return a key made of all secrets, slowly: a cookie must not let its holder try out the others in its own time."""
    return hashlib.scrypt(secrets.encode(), salt=b"batch sessions", n=_SCRYPT_COST, r=8, p=1) if secrets else b""


def _bytes_of(text: str) -> bytes:
    # Header values that are no UTF-8 arrive with surrogates in them, and JSON may hold any.
    return text.encode("utf-8", "surrogatepass")
