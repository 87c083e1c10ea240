"""Try to break the command line: kills, damaged files, random settings, hostile rewards and clients, full disks.

    python benchmarks/stress_kit.py --output build/stress

The items of each part are numbered, and all random numbers of an item come from the seed, its part and its number. They
run in forks of this process, which has loaded the libraries; kills and broken streams also start new interpreters.
`items.jsonl` in the output folder has the finished items: the same command again continues there. `result.md` has a
table of all parts. Allowed exit codes are 0, 1, 2 and 130; a traceback, an internal error, a lost iteration, a
process that is left and a command that hangs are faults. The exit code is 1 if there is a fault. An item with a fault
can be repeated alone, with `--only PART:NUMBER` and another output folder; `faults/` has its messages.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from stress.journal import Journal
from stress.result import write_result
from stress.scheduler import Part, Scheduler

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the items that are not finished yet, and print the table."""
    options = _options()
    if not options.only and sum(_counts(options).values()) == 0:
        raise SystemExit("every count is 0")
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    journal = Journal(options.output / "items.jsonl", options.seed)
    _set_environment()
    _load_libraries()
    parts = _parts(options)
    items = [(parts[name], number) for name, count in _counts(options).items() for number in range(count)]
    if options.only:
        items = [_named(parts, item) for item in options.only]
    began = time.monotonic()
    try:
        Scheduler(options.output, options.seed, journal, options.workers).run(items)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    rows = [journal.rows[part.name, number] for part, number in items]
    print(write_result(options.output / "result.md", rows, time.monotonic() - began))
    return 1 if any(row["faults"] for row in rows) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder of the journal and of the result")
    parser.add_argument("--seed", type=int, default=0, help="seed of all items (default: 0)")
    parser.add_argument("--workers", type=int, default=2, help="items that run at the same time (default: 2)")
    parser.add_argument("--only", action="append", metavar="PART:NUMBER", help="run this item only; may be repeated")
    for name, count, text in (
        ("kills", 50, "kills of runs, each followed by a resume"),
        ("mutations", 1000, "mutations: half of a run folder, half of a config file"),
        ("configurations", 200, "random valid configurations, which are trained"),
        ("images", 10000, "damaged images"),
        ("requests", 5000, "requests to both servers"),
        ("clients", 200, "clients at the same time"),
        ("iterations", 1000, "iterations of the long run"),
        ("rewards", 66, "hostile rewards"),
        ("disks", 24, "full and read-only disks"),
        ("streams", 40, "broken streams"),
        ("ranks", 6, "hung processes of a run"),
    ):
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"{text} (default: {count})")
    return parser.parse_args()


def _counts(options: argparse.Namespace) -> dict[str, int]:
    """The number of items of each part. The long run is first, because nothing else takes as long."""
    return {
        "iterations": int(options.iterations > 0),
        "clients": 2 * (options.clients > 0),
        "kills": -(-options.kills // 5),
        "folders": -(-options.mutations // 2),
        "config-mutations": options.mutations // 2,
        "configurations": options.configurations,
        "images": -(-options.images // 100),
        "requests": -(-options.requests // 100),
        "rewards": options.rewards,
        "disks": options.disks,
        "streams": options.streams,
        "ranks": options.ranks,
    }


def _parts(options: argparse.Namespace) -> dict[str, Part]:
    """The parts by name. They import torch, so they are imported after the environment is set."""
    from stress import (
        config_mutations,
        configurations,
        disks,
        folders,
        hostile_rewards,
        images,
        kills,
        long_run,
        many_clients,
        ranks,
        server_requests,
        streams,
    )

    parts = [
        long_run.part(options.iterations),
        many_clients.part(options.clients),
        kills.part(min(5, options.kills)),
        folders.PART,
        config_mutations.PART,
        configurations.PART,
        images.part(min(100, options.images)),
        server_requests.part(min(100, options.requests)),
        hostile_rewards.PART,
        disks.PART,
        streams.PART,
        ranks.PART,
    ]
    return {part.name: part for part in parts}


def _named(parts: dict[str, Part], item: str) -> tuple[Part, int]:
    name, _, number = item.partition(":")
    if name not in parts or not number.isdigit():
        raise SystemExit(f"--only {item}: write PART:NUMBER with one of the parts {', '.join(parts)}")
    return parts[name], int(number)


def _set_environment() -> None:
    """One thread, no hub, no settings of the user, and this source tree also in new interpreters."""
    for name in [name for name in os.environ if name.startswith("TDMR1_")]:
        del os.environ[name]
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    os.environ["PYTHONPATH"] = str(ROOT)
    sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]


def _load_libraries() -> None:
    """Import what commands import, and make image grids smaller, as the tests do."""
    print("loading torch and diffusers …", file=sys.stderr)
    from support.warm_cli import import_everything

    import_everything()


if __name__ == "__main__":
    sys.exit(main())
