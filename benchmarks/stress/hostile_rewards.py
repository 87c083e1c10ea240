"""Hostile rewards: each fault of a reward file, at each time, in a thread or in its own process."""

from __future__ import annotations

import json
from pathlib import Path

from stress.case import Case, small
from stress.scheduler import Part

HEAD = """
import atexit, ctypes, os, signal, subprocess, sys, threading, time, warnings
from tdmr1_rewards import RewardResult


def scores(batch):
    return [float(image.resize((1, 1)).getpixel((0, 0))[0]) for image in batch.images]


def attack(batch):
    {attack}


class Reward:
    def __init__(self):
        self.calls = 0
        if {when!r} == "construction":
            attack(None)

    def setup(self, device):
        if {when!r} == "setup":
            attack(None)

    def __call__(self, batch):
        context = batch.context
        trains = context.run_folder is not None and context.iteration == 1
        self.calls += 1
        if {when!r} == "first call" and self.calls == 1 or {when!r} == "second iteration" and trains:
            answer = attack(batch)
            if answer is not None:
                return answer
        return RewardResult(scores(batch))

    def close(self):
        if {when!r} == "end":
            attack(None)
"""
ATTACKS = {
    "raises": "raise ValueError('no\\nsuch \\x1b[31mlamp \\ud800')",
    "raises a long message": "raise RuntimeError('x' * 10**7)",
    "raises a base exception": "class Strange(BaseException): pass\n    raise Strange('strange')",
    "raises an exception that cannot be shown": "class Odd(Exception):\n"
    "        def __str__(self): raise OSError('odd')\n    raise Odd()",
    "raises a group": "raise ExceptionGroup('several', [ValueError('a'), KeyError('b')])",
    "interrupts": "raise KeyboardInterrupt",
    "stops iterating": "raise StopIteration",
    "recurses": "attack(batch)",
    "runs out of memory": "raise MemoryError",
    "exits": "sys.exit(3)",
    "exits with 0": "sys.exit(0)",
    "hangs": "time.sleep(600)",
    "hangs in threads": "threading.Thread(target=time.sleep, args=(600,), daemon=True).start(); time.sleep(600)",
    "hangs and ignores signals": "[signal.signal(n, signal.SIG_IGN) for n in (2, 15)"
    " if threading.current_thread() is threading.main_thread()]; time.sleep(600)",
    "floods stdout": "[print('x' * 5000) for _ in range(2000)]",
    "floods stderr": "[print('\\x1b[2J' + 'x' * 5000, file=sys.stderr) for _ in range(2000)]",
    "floods descriptors": "[os.write(n, b'raw\\xff' * 1000) for n in (1, 2) for _ in range(1000)]",
    "closes descriptors": "[os.close(n) for n in (0, 1, 2)]",
    "closes streams": "sys.stdout.close(); sys.stderr.close()",
    "removes streams": "sys.stdout = sys.stderr = sys.stdin = None",
    "reads stdin": "sys.stdin.read()",
    "warns": "[warnings.warn(f'warning {n}') for n in range(500)]",
    "forks": "os.fork() or os._exit(0)",
    "forks and stays": "os.fork() or time.sleep(1) or os._exit(0)",
    "starts a process": "subprocess.Popen(['sleep', '2'])",
    "starts a thread": "threading.Thread(target=time.sleep, args=(3,)).start()",
    "registers an error at the exit": "atexit.register(lambda: 1 / 0)",
    "changes the folder": "os.chdir('/')",
    "changes the umask": "os.umask(0o777)",
    "clears the environment": "os.environ.clear()",
    "changes signals": "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    " if threading.current_thread() is threading.main_thread() else None",
    "opens all descriptors": "globals().update(kept=[os.open('/dev/null', 0) for _ in range(2000)])",
    "changes torch": "import torch; torch.set_default_dtype(torch.float64); torch.manual_seed(0);"
    " torch.set_grad_enabled(False); torch.use_deterministic_algorithms(True)",
    "traces": "sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)",
    "limits recursion": "sys.setrecursionlimit(150)",
    "returns nothing": "return []",
    "returns too few": "return RewardResult(scores(batch)[1:])",
    "returns too many": "return RewardResult(scores(batch) * 2)",
    "returns texts": "return RewardResult(['0.5'] * len(batch))",
    "returns NaN": "return RewardResult([float('nan')] * len(batch))",
    "returns huge numbers": "return RewardResult([10**400] * len(batch))",
    "returns a generator": "return (1.0 for _ in batch.images)",
    "returns a matrix": "import torch; return RewardResult(torch.zeros(len(batch), 2, 3))",
    "returns a coroutine": "import asyncio; return asyncio.sleep(600)",
    "returns complex numbers": "return RewardResult([1j] * len(batch))",
    "returns a result that raises": "class Bad:\n        def __len__(self): raise OSError('len')\n"
    "        def __iter__(self): raise OSError('iter')\n    return RewardResult(Bad())",
    "returns strange details": "return RewardResult(scores(batch), [{'metrics': {'mean': object()}}] * len(batch))",
    "returns deep details": "deep = []\n    for _ in range(10**5): deep = [deep]\n"
    "    return RewardResult(scores(batch), [{'deep': deep}] * len(batch))",
    "returns cyclic details": "loop = {}; loop['loop'] = loop\n"
    "    return RewardResult(scores(batch), [loop] * len(batch))",
    "returns no scores at all": "return RewardResult([None] * len(batch))",
    "changes the batch": "[image.paste(0) for image in batch.images] if batch else None",
}
DEADLY = {
    "dies": "os._exit(7)",
    "dies with 0": "os._exit(0)",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "crashes": "ctypes.string_at(0)",
    "aborts": "os.abort()",
    "stops itself": "os.kill(os.getpid(), signal.SIGSTOP)",
    "replaces itself": "os.execvp('sleep', ['sleep', '600'])",
}
"""Attacks that end their process. A reward that may do this is used with `isolated: true`."""
TIMES = ("second iteration", "second iteration", "first call", "setup", "construction", "end")


def run(case: Case) -> None:
    """Train two iterations with a hostile reward; the first is saved if the second fails."""
    attacks = sorted({**ATTACKS, **DEADLY})
    name = attacks[case.number % len(attacks)]
    when = case.rng.choice(TIMES)
    isolated = name in DEADLY or case.rng.random() < 0.5
    path = case.folder / "hostile.py"
    path.write_text(HEAD.format(attack={**ATTACKS, **DEADLY}[name], when=when))
    reward = {"name": "hostile", "source": f"{path}:Reward", "timeout": 3, "isolated": isolated}
    reward |= {"retries": case.rng.choice([0, 0, 1]), "on_failure": case.rng.choice(["stop", "stop", "skip"])}
    folder = case.folder / "run"
    settings = small("iterations=2", "prompts.train=count", f"rewards={json.dumps([reward])}")
    settings += ["--set", "evaluation.rewards=[{name: object_count}]"]
    done = case.tdmr1("train", *settings, "--output", folder, limit=90)
    if when == "second iteration" or done.code in (0, 1):
        case.check_saved(folder, 2 if done.code == 0 else 1)
    case.check(len(done.err) < 1 << 20, f"stderr has {len(done.err)} bytes")
    if done.code not in (0, 1, 2) and done.code is not None:
        case.fault(f"exit code {done.code} although nobody stopped the run")
    place = "isolated" if isolated else "in a thread"
    case.faults = [f"{name} at its {when}, {place}, {reward['on_failure']}: {fault}" for fault in case.faults]
    _remove_debris(folder)


def _remove_debris(folder: Path) -> None:
    """Make folders that a changed umask has made unreadable removable."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


PART = Part("rewards", run, seconds=5)
