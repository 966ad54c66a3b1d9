"""Adds up a chaos run and prints it as a table and, for each finding, a line to reproduce it by."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.evidence import Asked, Finding, Flaw, Outcome, Verdict
from tests.chaos.scenario import Scenario

# What the service's log says about how it helped itself, in the table's words.
RECOVERIES = {
    ("image.retried", "from the start"): "tried again from the start",
    ("image.retried", "after a part"): "tried again for the rest",
    ("image.resumed", "range"): "resumed by range",
    ("image.resumed", "replay"): "resumed by replay",
    ("image.rolled_back", ""): "rolled back",
    ("order.retried", ""): "order looked up again",
    ("upstream.throttled", ""): "slowed down after a 429",
    ("archive.upstream_abandoned", ""): "gave an upstream up",
}


@dataclass(slots=True)
class Tally:
    """The sums of one run. ``faults`` and ``recoveries`` are known at its end."""

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

    def add(self, scenario: Scenario, asked: Asked, verdict: Verdict) -> None:
        """Count one archive."""
        self.outcomes[verdict.outcome] += 1
        self.images["delivered"] += len(verdict.delivered)
        self.images.update(f"reported: {reason}" for reason in verdict.reported.values())
        seen = {image.image_id: image.seen for image in asked.images}
        for finding in verdict.findings:
            self.flaws[finding.flaw] += 1
            where = f"archive {scenario.number}, order {scenario.order_id}"
            image = f", image {finding.image_id}" if finding.image_id else ""
            requests = seen.get(finding.image_id) or "; ".join(asked.order_grounds)
            again = f"--seed {self.seed} --only {scenario.number}"
            self.lines.append(f"{finding.flaw}: {finding.detail} ({where}{image}; {again})\n    {requests}")

    def add_run(self, findings: Iterable[Finding]) -> None:
        """Count what concerns no single archive."""
        for finding in findings:
            self.flaws[finding.flaw] += 1
            self.lines.append(f"{finding.flaw}: {finding.detail}")

    def add_log(self, events: Sequence[Mapping[str, object]]) -> None:
        """Count the recoveries which the service's log tells of."""
        for event in events:
            if words := RECOVERIES.get((str(event.get("event")), _step(event))):
                self.recoveries[words] += 1

    def table(self) -> str:
        """Return everything as text, aligned."""
        images = sum(self.images.values())
        head = (
            f"chaos: seed {self.seed}, {sum(self.outcomes.values())} archives, {images} images accounted for, "
            f"{self.bytes_received / 1e6:.0f} MB, {self.seconds:.0f} s, {self.clients} clients"
        )
        second = "every archive" if self.unzip else "nothing: it is not installed"
        sections = [
            ("archives", _all(Outcome, self.outcomes)),
            ("images", dict(self.images.most_common())),
            ("faults injected", dict(sorted(self.faults.items()))),
            ("recovered", _all(RECOVERIES.values(), self.recoveries)),
            ("flaws", _all(Flaw, self.flaws)),
        ]
        return "\n".join([head, *(_section(*one) for one in sections), f"\nunzip has tested {second}", *self.lines])


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
