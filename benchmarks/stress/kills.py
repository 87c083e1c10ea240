"""Kill chains: a run is killed and resumed repeatedly; its end has the bits of an uninterrupted run."""

from __future__ import annotations

from functools import partial

import kill_test

from stress.case import Case
from stress.scheduler import Part


def part(kills: int) -> Part:
    """The part with this number of kills in each chain."""
    return Part("kills", partial(_run, kills), seconds=90, limit=3600, size=kills)


def _run(kills: int, case: Case) -> None:
    """Even items kill new interpreters from outside, odd ones forks at a stage of an iteration."""
    stages = case.rng.sample(kill_test.STAGES, min(kills, len(kill_test.STAGES)))
    words = ["--output", str(case.folder / "chain"), "--kills", str(kills), "--seed", str(case.rng.randrange(10**6))]
    words += ["--stages", *(stages if case.number % 2 else [kill_test.OUTSIDE])]
    found = kill_test.compare(kill_test.read_options(words))
    case.codes.update({"-9": found["total"], "0": 2})
    case.check(not found["different"], f"{words}: the killed run differs in {found['different']}")
    case.check(found["total"] == kills, f"{words}: {found['total']} of {kills} kills")
