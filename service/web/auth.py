"""Who may see what: the operator's token, compared in constant time."""

import hmac
from collections.abc import Mapping

_BEARER = "bearer "


class AdminToken:
    """The token that proves an operator. Without one, nobody is an operator."""

    def __init__(self, token: str | None) -> None:
        self._token = _bytes_of(token) if token else None

    def is_in(self, headers: Mapping[str, str]) -> bool:
        """Whether a request's headers carry the token, in ``X-Admin-Token`` or as ``Authorization: Bearer``."""
        authorization = headers.get("Authorization", "")
        bearer = authorization[len(_BEARER) :].strip() if authorization.lower().startswith(_BEARER) else ""
        given = [headers.get("X-Admin-Token", ""), bearer]
        # Both are compared whatever the first says: the time tells nothing of the token but its length.
        same = [hmac.compare_digest(_bytes_of(one), self._token or b"") for one in given]
        return self._token is not None and any(same)


def _bytes_of(text: str) -> bytes:
    # Header values that are no UTF-8 arrive with surrogates in them.
    return text.encode("utf-8", "surrogateescape")
