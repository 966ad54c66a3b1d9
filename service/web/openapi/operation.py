"""One operation of the document: its request, responses and required credentials."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.errors import ServiceError
from service.web.openapi.problems import problem_responses

JSON = "application/json"
Parameter = Mapping[str, Any]
Security = Sequence[Mapping[str, list[str]]]

# Alternatives; the empty one means that the settings decide whether credentials are required.
PUBLIC: Security = ()
KEY: Security = ({}, {"serviceKey": []}, {"bearer": []}, {"adminToken": []}, {"session": []})
KEY_OR_LINK: Security = (*KEY, {"link": []})
ADMIN: Security = ({"adminToken": []}, {"bearer": []}, {"session": []})
WEBHOOK: Security = ({"webhookSecret": []},)


@dataclass(frozen=True, slots=True)
class Success:
    """A response other than a problem. ``headers`` names ``components/headers``; ``more`` has ``x-`` members."""

    status: int
    description: str
    content: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. A 500, and a 400 for a malformed request, are possible everywhere."""

    method: str
    path: str
    operation_id: str
    tag: str
    summary: str
    description: str
    successes: tuple[Success, ...]
    problems: tuple[type[ServiceError], ...] = ()
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Any] | None = None
    security: Security = PUBLIC

    def document(self) -> dict[str, Any]:
        """Return the OpenAPI operation object."""
        with_body = self.method != "head"
        responses = {str(one.status): _success(one) for one in self.successes}
        responses |= problem_responses(self.problems, with_body=with_body)
        if with_body:
            responses["default"] = {"$ref": "#/components/responses/Fault"}
        document: dict[str, Any] = {
            "operationId": self.operation_id,
            "tags": [self.tag],
            "summary": self.summary,
            "description": unwrapped(self.description),
            "security": [dict(one) for one in self.security],
            "responses": responses,
        }
        if self.parameters:
            document["parameters"] = [dict(one) for one in self.parameters]
        if self.body is not None:
            document["requestBody"] = dict(self.body)
        return document


def unwrapped(text: str) -> str:
    """Return Markdown with one line for each paragraph: Swagger UI breaks a line wherever the text does."""
    parts = text.strip().split("```")
    # Every other part is code; tables and lists keep their lines.
    parts[::2] = [re.sub(r"(?<!\n)\n(?![\n|-])", " ", part) for part in parts[::2]]
    return "```".join(parts)


def json_content(schema: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the content object of a JSON body."""
    return {JSON: {"schema": dict(schema), **more}}


def _success(success: Success) -> dict[str, Any]:
    names = ("X-Request-ID", *success.headers)
    response: dict[str, Any] = {
        "description": success.description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        **success.more,
    }
    if success.content:
        response["content"] = dict(success.content)
    return response
