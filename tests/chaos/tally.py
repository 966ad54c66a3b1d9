"""The totals of a chaos run, as a table with a line to reproduce each finding."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.model import CheckResult, ExpectedArchive, Finding, Flaw, Outcome
from tests.chaos.scenario import Scenario

# Recoveries that the service logs, as named in the table.
RECOVERIES = {
    ("image.retried", "from the start"): "tried again from the start",
    ("image.retried", "after a part"): "tried again for the rest",
    ("image.resumed", "range"): "resumed by range",
    ("image.resumed", "replay"): "resumed by replay",
    ("image.rolled_back", ""): "rolled back",
    ("order.retried", ""): "order looked up again",
    ("upstream.throttled", ""): "slowed down after a 429",
    ("archive.upstream_abandoned", ""): "gave up on the upstream",
}


@dataclass(slots=True)
class Tally:
    """The totals of one run; ``faults`` and ``recoveries`` are filled in at its end."""

    seed: int
    seconds: float = 0.0
    clients: int = 0
    unzip: bool = False
    bytes_received: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    recoveries: Counter[str] = field(default_factory=Counter)
    flaws: Counter[Flaw] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, scenario: Scenario, expected: ExpectedArchive, result: CheckResult) -> None:
        """Count one archive."""
        self.outcomes[result.outcome] += 1
        self.images["delivered"] += len(result.delivered)
        self.images.update(f"reported: {reason}" for reason in result.reported.values())
        requests_of = {image.image_id: image.requests for image in expected.images}
        for finding in result.findings:
            self.flaws[finding.flaw] += 1
            where = f"archive {scenario.number}, order {scenario.order_id}"
            image = f", image {finding.image_id}" if finding.image_id else ""
            requests = requests_of.get(finding.image_id) or "; ".join(expected.order_causes)
            again = f"--seed {self.seed} --only {scenario.number}"
            self.lines.append(f"{finding.flaw}: {finding.detail} ({where}{image}; {again})\n    {requests}")

    def add_run(self, findings: Iterable[Finding]) -> None:
        """Count findings that belong to no single archive."""
        for finding in findings:
            self.flaws[finding.flaw] += 1
            self.lines.append(f"{finding.flaw}: {finding.detail}")

    def add_log(self, events: Sequence[Mapping[str, object]]) -> None:
        """Count the recoveries in the service's log."""
        for event in events:
            if words := RECOVERIES.get((str(event.get("event")), _step(event))):
                self.recoveries[words] += 1

    def table(self) -> str:
        """Return everything as text, aligned."""
        images = sum(self.images.values())
        title = (
            f"chaos: seed {self.seed}, {sum(self.outcomes.values())} archives, {images} images accounted for, "
            f"{self.bytes_received / 1e6:.0f} MB, {self.seconds:.0f} s, {self.clients} clients"
        )
        tested = "every archive" if self.unzip else "nothing: it is not installed"
        sections = [
            ("archives", _all(Outcome, self.outcomes)),
            ("images", dict(self.images.most_common())),
            ("faults injected", dict(sorted(self.faults.items()))),
            ("recovered", _all(RECOVERIES.values(), self.recoveries)),
            ("flaws", _all(Flaw, self.flaws)),
        ]
        return "\n".join([title, *(_section(*one) for one in sections), f"\nunzip has tested {tested}", *self.lines])


def events_of(lines: Iterable[str]) -> list[dict[str, object]]:
    """Parse the service's log."""
    return [json.loads(line) for line in lines]


def _step(event: Mapping[str, object]) -> str:
    match event.get("event"):
        case "image.retried":
            return "after a part" if event.get("received_bytes") else "from the start"
        case "image.resumed":
            return str(event.get("method"))
        case _:
            return ""


def _all(names: Iterable[str], counts: Mapping[Any, int]) -> dict[str, int]:
    return {str(name): counts.get(name, 0) for name in names}


def _section(title: str, counts: Mapping[str, int]) -> str:
    width = max(map(len, counts), default=0)
    return "\n".join([f"\n{title}", *(f"  {name:<{width}}  {count:>6}" for name, count in counts.items())])
