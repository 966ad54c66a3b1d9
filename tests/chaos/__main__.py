"""``python -m tests.chaos``: download archives under random faults, and check that no image is lost."""

import asyncio
import random
import sys

import click

from tests.chaos.run import Plan, run


@click.command()
@click.option("--seed", type=int, default=None, help="Repeat the run of this seed; random by default.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Start no archive after this time.")
@click.option("--archives", type=click.IntRange(1), default=1_000_000, help="Download at most so many archives.")
@click.option("--clients", type=click.IntRange(1), default=6, show_default=True, help="Concurrent clients.")
@click.option("--only", type=click.IntRange(1), default=None, help="Download only the archive with this number.")
def main(seed: int | None, seconds: float, archives: int, clients: int, only: int | None) -> None:
    """Download archives under random faults; exit 1 if an image was lost or an archive is wrong."""
    seed = random.randrange(1_000_000) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    tally = asyncio.run(run(Plan(seed, seconds, archives, clients, only)))
    click.echo(tally.table())
    sys.exit(1 if tally.flaws else 0)


if __name__ == "__main__":
    main()
