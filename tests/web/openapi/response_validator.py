"""Validate responses against ``/openapi.json``: status, headers and body, exactly."""

import json
import re
from collections.abc import Mapping
from typing import Any

import aiohttp
from jsonschema import Draft202012Validator, FormatChecker
from multidict import CIMultiDictProxy
from yarl import URL

# Headers that every response may have; the document describes them in its introduction.
COMMON_HEADERS = frozenset(
    {
        "cache-control",
        "connection",
        "content-length",
        "content-security-policy",
        "content-type",
        "cross-origin-resource-policy",
        "date",
        "referrer-policy",
        "server",
        "transfer-encoding",
        "x-content-type-options",
        "x-frame-options",
        "x-request-id",
    }
)
PROBLEM_TYPE = "application/problem+json"


class ResponseValidator:
    """Validate responses against a document; record the status and problem types of each operation."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.seen: set[tuple[str, int]] = set()
        self.problems: set[str] = set()
        self._paths = [
            (re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path)), operations)
            for path, operations in document["paths"].items()
        ]

    def operation(self, method: str, path: str) -> dict[str, Any]:
        """Return the operation of a request."""
        (found,) = [operations for pattern, operations in self._paths if pattern.fullmatch(path)]
        operation: dict[str, Any] = found[method.lower()]
        return operation

    def validate_value(self, schema: Mapping[str, Any], value: object) -> None:
        """Fail unless a value matches a schema of the document."""
        whole = {**schema, "components": self.document["components"]}
        Draft202012Validator(whole, format_checker=FormatChecker()).validate(value)

    def resolved(self, part: dict[str, Any]) -> dict[str, Any]:
        """Resolve a part of the document that may be a reference."""
        found = part
        for name in part["$ref"].removeprefix("#/").split("/") if "$ref" in part else ():
            found = self.document[name] if found is part else found[name]
        return found

    def validate(self, method: str, url: URL, status: int, headers: CIMultiDictProxy[str], body: bytes) -> None:
        """Fail unless the document describes this response."""
        operation = self.operation(method, url.path)
        name = operation["operationId"]
        assert str(status) in operation["responses"], f"{name}: {status} is not documented: {body[:500]!r}"
        response = operation["responses"][str(status)]
        self.seen.add((name, status))
        self._validate_headers(response.get("headers", {}), headers)
        if method != "HEAD":
            self._validate_body(response.get("content", {}), headers.get("Content-Type", ""), body)
        elif status >= 400:
            assert headers["Content-Type"].startswith(PROBLEM_TYPE)

    def _validate_headers(self, documented: dict[str, Any], headers: CIMultiDictProxy[str]) -> None:
        assert {"x-request-id", "x-content-type-options", "content-security-policy"} <= {one.lower() for one in headers}
        surplus = {one.lower() for one in headers} - COMMON_HEADERS - {one.lower() for one in documented}
        assert not surplus, f"not documented: {surplus}"
        for name, part in documented.items():
            header = self.resolved(part)
            assert name in headers or not header["required"], f"{name} is missing"
            if name in headers:
                text = headers[name]
                self.validate_value(header["schema"], int(text) if header["schema"].get("type") == "integer" else text)

    def _validate_body(self, documented: dict[str, Any], content_type: str, body: bytes) -> None:
        if not documented:
            assert body == b""
            return
        media_type = content_type.partition(";")[0]
        assert media_type in documented, f"{media_type} is not documented"
        if not media_type.endswith("json"):
            return
        value = json.loads(body)
        self.validate_value(documented[media_type]["schema"], value)
        if media_type == PROBLEM_TYPE:
            self._validate_problem(documented[media_type], value)

    def _validate_problem(self, documented: dict[str, Any], value: dict[str, Any]) -> None:
        slug = value["type"].rpartition("/")[2]
        self.problems.add(slug)
        example = self.resolved(documented["examples"][slug])["value"]
        assert {name: value[name] for name in ("type", "title", "status")} == {
            name: example[name] for name in ("type", "title", "status")
        }
        assert set(example) <= set(value), f"{slug} should have {set(example) - set(value)}"


async def send(
    validator: ResponseValidator, client: aiohttp.ClientSession, method: str, url: str, status: int, **options: Any
) -> tuple[CIMultiDictProxy[str], bytes]:
    """Send a request and validate its response; return headers and body."""
    async with client.request(method, url, **options) as response:
        body = await response.read()
        assert response.status == status, body[:500]
        validator.validate(method, response.url, response.status, response.headers, body)
        return response.headers, body
