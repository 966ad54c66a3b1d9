"""Compares answers with ``/openapi.json``: status, headers and body must be as it says, and nothing else."""

import json
import re
from collections.abc import Mapping
from typing import Any

import aiohttp
from jsonschema import Draft202012Validator, FormatChecker
from multidict import CIMultiDictProxy
from yarl import URL

# What every answer may have; the document says so of all together.
EVERYWHERE = frozenset(
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


class Judge:
    """Judges answers by a document, and notes which operations gave which status."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.seen: set[tuple[str, int]] = set()
        self.problems: set[str] = set()
        self._paths = [
            (re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path)), operations)
            for path, operations in document["paths"].items()
        ]

    def operation(self, method: str, path: str) -> dict[str, Any]:
        """Return the operation that a request is for; a path of its own goes before one with parameters."""
        (found,) = [operations for pattern, operations in self._paths if pattern.fullmatch(path)]
        operation: dict[str, Any] = found[method.lower()]
        return operation

    def check(self, schema: Mapping[str, Any], value: object) -> None:
        """Fail unless a value is what a schema of the document says."""
        whole = {**schema, "components": self.document["components"]}
        Draft202012Validator(whole, format_checker=FormatChecker()).validate(value)

    def resolved(self, part: dict[str, Any]) -> dict[str, Any]:
        """Return a part of the document, or what it refers to."""
        found = part
        for name in part["$ref"].removeprefix("#/").split("/") if "$ref" in part else ():
            found = self.document[name] if found is part else found[name]
        return found

    def judge(self, method: str, url: URL, status: int, headers: CIMultiDictProxy[str], body: bytes) -> None:
        """Fail unless the document has this answer."""
        operation = self.operation(method, url.path)
        name = operation["operationId"]
        assert str(status) in operation["responses"], f"{name}: {status} is not documented: {body[:500]!r}"
        response = operation["responses"][str(status)]
        self.seen.add((name, status))
        self._judge_headers(response.get("headers", {}), headers)
        if method != "HEAD":
            self._judge_body(response.get("content", {}), headers.get("Content-Type", ""), body)
        elif status >= 400:
            assert headers["Content-Type"].startswith(PROBLEM_TYPE)

    def _judge_headers(self, documented: dict[str, Any], headers: CIMultiDictProxy[str]) -> None:
        assert {"x-request-id", "x-content-type-options", "content-security-policy"} <= {one.lower() for one in headers}
        surplus = {one.lower() for one in headers} - EVERYWHERE - {one.lower() for one in documented}
        assert not surplus, f"not documented: {surplus}"
        for name, part in documented.items():
            header = self.resolved(part)
            assert name in headers or not header["required"], f"{name} is missing"
            if name in headers:
                text = headers[name]
                self.check(header["schema"], int(text) if header["schema"].get("type") == "integer" else text)

    def _judge_body(self, documented: dict[str, Any], content_type: str, body: bytes) -> None:
        if not documented:
            assert body == b""
            return
        kind = content_type.partition(";")[0]
        assert kind in documented, f"{kind} is not documented"
        if not kind.endswith("json"):
            return
        value = json.loads(body)
        self.check(documented[kind]["schema"], value)
        if kind == PROBLEM_TYPE:
            self._judge_problem(documented[kind], value)

    def _judge_problem(self, documented: dict[str, Any], value: dict[str, Any]) -> None:
        slug = value["type"].rpartition("/")[2]
        self.problems.add(slug)
        example = self.resolved(documented["examples"][slug])["value"]
        assert {name: value[name] for name in ("type", "title", "status")} == {
            name: example[name] for name in ("type", "title", "status")
        }
        assert set(example) <= set(value), f"{slug} should have {set(example) - set(value)}"


async def ask(
    judge: Judge, client: aiohttp.ClientSession, method: str, url: str, status: int, **options: Any
) -> tuple[CIMultiDictProxy[str], bytes]:
    """Send a request, have the answer judged, and return it."""
    async with client.request(method, url, **options) as response:
        body = await response.read()
        assert response.status == status, body[:500]
        judge.judge(method, response.url, response.status, response.headers, body)
        return response.headers, body
