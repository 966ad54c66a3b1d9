"""Parses query parameters as the API does, with its 422 errors."""

from collections.abc import Callable, Mapping

from service.sandbox.variants import Variant

_TRUE = frozenset({"true", "t", "1", "yes", "y", "on"})
_FALSE = frozenset({"false", "f", "0", "no", "n", "off"})
_MAX_QUALITY = 90
_MAX_PER_PAGE = 100


class InvalidQueryError(Exception):
    """Invalid query parameters; ``problems`` lists messages by field."""

    def __init__(self, problems: Mapping[str, list[str]]) -> None:
        super().__init__("Validation error")
        self.problems = problems


class _Reader:
    """Parses fields one by one and collects their errors."""

    def __init__(self, query: Mapping[str, str]) -> None:
        self._query = query
        self.problems: dict[str, list[str]] = {}

    def boolean(self, field: str) -> bool | None:
        text = self._query.get(field, "").lower()
        if field not in self._query:
            return None
        if text not in _TRUE | _FALSE:
            self.problems[field] = ["Not a valid boolean."]
        return text in _TRUE

    def number(self, field: str, cast: Callable[[str], float], low: float, high: float | None) -> float | None:
        if field not in self._query:
            return None
        try:
            value = cast(self._query[field])
        except ValueError:
            self.problems[field] = ["Not a valid integer." if cast is int else "Not a valid number."]
            return None
        if not low <= value <= (value if high is None else high):
            bound = f"Must be greater than or equal to {low:g}"
            self.problems[field] = [f"{bound}." if high is None else f"{bound} and less than or equal to {high:g}."]
        return value

    def integer(self, field: str, low: int, high: int | None = None) -> int | None:
        value = self.number(field, int, low, high)
        return None if value is None else int(value)

    def choice(self, field: str, choices: frozenset[str], default: str) -> str:
        value = self._query.get(field, default)
        if value not in choices:
            self.problems[field] = [f"Must be one of: {', '.join(sorted(choices))}."]
        return value

    def done(self) -> None:
        if self.problems:
            raise InvalidQueryError(self.problems)


def read_variant(query: Mapping[str, str], *, dev_mode: bool, formats: frozenset[str]) -> Variant:
    """Return the variant that the query of a download selects.

    Raises:
        InvalidQueryError: a value is out of range, or this installation cannot encode the format.
    """
    reader = _Reader(query)
    preview = reader.boolean("preview")
    variant = Variant(
        format=reader.choice("format", formats, "jpeg"),
        quality=reader.integer("quality", 1, _MAX_QUALITY),
        preview=True if preview is None else preview,
        dev_mode=dev_mode,
        max_width=reader.integer("max_width", 1),
        scale=reader.number("scale", float, 0, 1),
        watermark=reader.boolean("watermark"),
    )
    reader.done()
    return variant


def read_page(query: Mapping[str, str]) -> tuple[int, int]:
    """Return offset and number of orders for one page of the list.

    Raises:
        InvalidQueryError: a value is not a number or out of range.
    """
    reader = _Reader(query)
    offset = reader.integer("offset", 0)
    per_page = reader.integer("per_page", 1, _MAX_PER_PAGE)
    reader.done()
    return offset or 0, per_page or 5
