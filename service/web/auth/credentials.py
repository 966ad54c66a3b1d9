"""API keys and the admin token, and the role each grants.

Roles are ordered; each includes the ones before it::

    download   see orders, download previews
    full       also download in full quality, which spends credits
    admin      everything

Keys are compared in constant time and never leave this file: a session names its key by a keyed fingerprint, so that it
ends when the key is removed from the settings.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

_BEARER = "bearer "
# 16 MiB and some 50 ms, once at the start, and for each guess (RFC 7914 section 2).
_SCRYPT_COST = 2**14


class Role(IntEnum):
    """What a client may do; a higher role includes the lower ones."""

    DOWNLOAD = 1
    FULL = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """The role as the API spells it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A client's API key, and whether it may spend credits."""

    secret: str
    full: bool = False


class Credentials:
    """All configured secrets and the roles they grant.

    Without service keys every client may download; ``allow_full_quality`` lets every client that may download also
    spend credits. ``open_to_all`` makes every client an admin: for the sandbox only.
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
        self._salt = _stretch("\0".join(secret for secret, _ in roles))
        self._roles = [(self.fingerprint(secret), role) for secret, role in roles]
        self.keys_required = bool(service_keys)
        self.admin_enabled = bool(admin_token) or open_to_all
        self.has_secrets = bool(roles)
        self._open_to_all = open_to_all

    @property
    def anonymous(self) -> Role | None:
        """The role of a client without a secret."""
        if self._open_to_all:
            return Role.ADMIN
        return None if self.keys_required else self._least

    @property
    def session_key(self) -> bytes:
        """The key that signs sessions: the same on every replica, another one when any secret changes."""
        return hmac.digest(self._salt, b"session", "sha256")

    def fingerprint(self, secret: str) -> str:
        """Return a keyed hash of a secret, which identifies the secret but does not reveal it."""
        return hmac.new(self._salt, encode_text(secret), "sha256").hexdigest()

    def role_of(self, secret: str) -> Role | None:
        """Return the role that a secret grants, or ``None``."""
        return self.role_by_fingerprint(self.fingerprint(secret))

    def role_by_fingerprint(self, fingerprint: str) -> Role | None:
        """Return the role that the secret with this fingerprint grants, or ``None``. Every secret is compared."""
        given = encode_text(fingerprint)
        found = [role for known, role in self._roles if hmac.compare_digest(known.encode(), given)]
        return max(found, default=None)


def extract_secrets(headers: Mapping[str, str]) -> list[str]:
    """Return the secrets in a request's headers: X-API-Key, X-Admin-Token, and a bearer token (RFC 6750)."""
    authorization = headers.get("Authorization", "")
    bearer = authorization[len(_BEARER) :].strip() if authorization.lower().startswith(_BEARER) else ""
    given = (headers.get("X-API-Key", ""), headers.get("X-Admin-Token", ""), bearer)
    return [secret for secret in given if secret]


def encode_text(text: str) -> bytes:
    """Encode client input for hashing. Header values that are not UTF-8 and JSON strings may contain surrogates."""
    return text.encode("utf-8", "surrogatepass")


def _stretch(secrets: str) -> bytes:
    """Derive a key from all secrets, slowly (scrypt): the holder of a cookie must not guess the others offline."""
    return hashlib.scrypt(secrets.encode(), salt=b"batch sessions", n=_SCRYPT_COST, r=8, p=1) if secrets else b""
