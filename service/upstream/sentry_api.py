"""The client of Sentry's API: lists the project's newest issues for the admin page.

https://docs.sentry.io/api/events/list-a-projects-issues/
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from yarl import URL

from service.errors import SentryInvalidResponse, SentryNotConfigured, SentryUnauthorized, SentryUnavailable
from service.upstream.http.bodies import BodyTooLarge, read_bounded
from service.upstream.http.session import ConnectionBroken

# A person waits for this; and a list of issues is small.
RESPONSE_TIMEOUT_SECONDS = 10.0
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
MAX_ISSUES = 25


class _Issue(BaseModel):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    id: str = ""
    short_id: str | None = Field(None, alias="shortId")
    title: str = ""
    culprit: str | None = None
    level: str | None = None
    count: int | None = None
    users: int | None = Field(None, alias="userCount")
    first_seen: str | None = Field(None, alias="firstSeen")
    last_seen: str | None = Field(None, alias="lastSeen")
    permalink: str | None = None


_ISSUES = TypeAdapter(list[_Issue])


class SentryApi:
    """The issues of one Sentry project. ``token`` needs the scope ``event:read``; it goes to ``base`` only."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        base: str,
        token: str | None,
        organization: str | None,
        project: str | None,
    ) -> None:
        self._session = session
        self._base = base
        self._settings: Mapping[str, str | None] = {
            "SENTRY_AUTH_TOKEN": token,
            "SENTRY_ORG": organization,
            "SENTRY_PROJECT": project,
        }

    async def list_unresolved(self) -> list[dict[str, Any]]:
        """Return the newest unresolved issues, each with id, title, culprit, level, counts, times and permalink.

        Raises:
            SentryNotConfigured, SentryUnauthorized, SentryUnavailable, SentryInvalidResponse
        """
        token, organization, project = self._require_settings()
        url = URL(self._base) / "api/0/projects" / organization / project / "issues/"
        query = {"query": "is:unresolved", "limit": str(MAX_ISSUES)}
        try:
            async with (
                self._session.get(
                    url.with_query(query),
                    headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
                    allow_redirects=False,  # the token is for this URL alone
                    timeout=aiohttp.ClientTimeout(total=RESPONSE_TIMEOUT_SECONDS),
                ) as response,
            ):
                if response.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                    raise SentryUnauthorized(
                        "Sentry rejects SENTRY_AUTH_TOKEN, or the token may not read this project."
                    )
                if response.status != HTTPStatus.OK:
                    raise SentryUnavailable(f"Sentry responded with status {response.status}.")
                body = await read_bounded(response.content.readany, max_bytes=MAX_RESPONSE_BYTES)
                return _parse_issues(body)
        except BodyTooLarge as error:
            raise SentryInvalidResponse("Sentry's response is too large.") from error
        except TimeoutError as error:
            raise SentryUnavailable(f"Sentry did not respond within {RESPONSE_TIMEOUT_SECONDS:g} s.") from error
        except (ConnectionBroken, aiohttp.ClientError, OSError) as error:
            raise SentryUnavailable("Sentry cannot be reached.") from error

    def _require_settings(self) -> tuple[str, ...]:
        missing = [name for name, value in self._settings.items() if not value]
        if missing:
            raise SentryNotConfigured(f"The operator must set {', '.join(missing)}.", missing=missing)
        return tuple(value for value in self._settings.values() if value)


def _parse_issues(body: bytes) -> list[dict[str, Any]]:
    try:
        issues = _ISSUES.validate_json(body)
    except ValidationError as error:
        raise SentryInvalidResponse("Sentry's response is not a list of issues.") from error
    return [issue.model_dump() for issue in issues[:MAX_ISSUES]]
