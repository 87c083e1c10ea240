"""No byte that a run prints or writes contains a secret, and a resume asks for the secrets that are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from support.command_line import changed, run_tdmr1

pytestmark = pytest.mark.integration

REWARD = """
from pathlib import Path

from pydantic import BaseModel, SecretStr
from tdmr1_rewards import RewardBatch, RewardOptions, RewardResult


class Login(BaseModel):
    user: str
    pin: SecretStr


class Options(RewardOptions):
    api_key: str
    passcode: SecretStr
    login: Login
    headers: dict[str, str] = {}
    base_url: str
    number_token: int
    from_environment: SecretStr


class Scored:
    '''Scores with secrets; in the second iteration, raises an error with all of them if a file exists.'''

    def __init__(self, options: Options) -> None:
        self.options = options

    def __call__(self, batch: RewardBatch) -> RewardResult:
        options, secrets = self.options, []
        secrets += [options.api_key, options.passcode.get_secret_value(), options.login.pin.get_secret_value()]
        secrets += [*options.headers.values(), options.base_url, str(options.number_token)]
        secrets += [options.from_environment.get_secret_value()]
        print("secrets:", *secrets)
        assert secrets == Path(__file__).with_name("expected.txt").read_text().splitlines(), secrets
        if batch.context.iteration == 1 and Path(__file__).with_name("fail").exists():
            raise RuntimeError(f"no answer of {options.base_url} for {secrets}")
        return RewardResult([float(image.getpixel((0, 0))[0]) for image in batch.images])
"""
KEY, PASSCODE, PIN, HEADER, NUMBER = "kY-81f/x+2", "open sesame", "pin-4711-0", "Bearer qq.77-vv", "90817263"
PASSWORD, QUERY, VARIABLE = "p%40ss:w0rd", "tok%2Fen99", "of-the-environment"
URL = f"https://me:{PASSWORD}@host.example/v1?Access_Token={QUERY}&page=7"
EXPECTED = (KEY, PASSCODE, PIN, HEADER, URL, NUMBER, VARIABLE)
FORMS = (KEY, "kY-81f%2Fx%2B2", PASSCODE, PIN, "qq.77-vv", NUMBER, PASSWORD, "p@ss:w0rd", QUERY, "tok/en99", VARIABLE)
PROMPT_TOKEN = "in-a-prompt-55"
PLACES = ("api_key", "passcode", "login.pin", "headers.authorization", "base_url", "number_token")


def secrets_in(text: str) -> list[str]:
    return [form for form in (*FORMS, PROMPT_TOKEN, "of-the-token-variable") if form in text]


def written(folder: Path) -> dict[str, list[str]]:
    """The secrets in the files of a folder, by file."""
    contents = {path: path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()}
    return {str(path): found for path, content in contents.items() if (found := secrets_in(content))}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "mine.py").write_text(REWARD)
    (folder / "expected.txt").write_text("".join(f"{secret}\n" for secret in EXPECTED))
    (folder / "prompts.txt").write_text(f"two red circles https://images.example/?sig={PROMPT_TOKEN}\n" * 2)
    return folder


def settings(files: Path, *more: str) -> list[str]:
    given = {"api_key": KEY, "passcode": PASSCODE, "headers": {"authorization": HEADER}, "base_url": URL}
    given |= {"login": {"user": "me", "pin": PIN}, "number_token": NUMBER, "from_environment": "env:MY_SECRET"}
    small = ("iterations=2", "batch.groups=2", "batch.group_size=2", "timesteps.per_iteration=1", "evaluation.images=1")
    small += (
        "saving.checkpoint_every=1",
        "saving.samples_every=0",
        "saving.tensorboard=true",
        f"prompts.train={files / 'prompts.txt'}",
    )
    small += (f"prompts.evaluate={files / 'prompts.txt'}", "guard.rewards=[]", "evaluation.rewards=[]")
    options = [
        f"rewards.0.options.{name}={json.dumps(value) if isinstance(value, dict) else value}"
        for name, value in given.items()
    ]
    return ["--reward", f"mine={files / 'mine.py'}:Scored", *changed((*small, *options, *more))]


VARIABLES = {"MY_SECRET": VARIABLE, "HF_TOKEN": "of-the-token-variable"}


@pytest.fixture(scope="module")
def run(files) -> Path:
    """A run of two iterations, of which the second failed with an error that contains the secrets."""
    folder = files / "run"
    (files / "fail").touch()
    done = run_tdmr1("train", *settings(files), "--output", folder, code=2, **VARIABLES)
    (files / "fail").unlink()
    assert "secrets: *** *** ***" in done.stderr
    assert "no answer of https://me:***@host.example/v1" in done.stderr
    assert secrets_in(done.stdout + done.stderr) == []
    return folder


def test_a_run_prints_and_writes_no_secret(run):
    assert written(run) == {}
    (batch,) = run.glob("failures/*/mine/batch.json")
    assert "?sig=***" in json.loads(batch.read_text())["images"][0]["prompt"]
    (reward,) = yaml.safe_load((run / "config.yaml").read_text())["rewards"]
    assert reward["options"]["from_environment"] == "env:MY_SECRET"
    assert reward["options"]["base_url"] == "https://me:***@host.example/v1?Access_Token=***&page=7"
    assert reward["options"]["login"] == {"user": "me", "pin": "***"}


@pytest.mark.parametrize("arguments", [["--dry-run"], ["--set", "rewards.0.options.passcod=open sesame"]])
def test_previews_and_mistakes_print_no_secret(files, arguments):
    done = run_tdmr1("train", *settings(files), *arguments, code=None, **VARIABLES)
    assert done.returncode == (0 if arguments == ["--dry-run"] else 2)
    assert secrets_in(done.stdout + done.stderr) == []


def test_a_resume_names_each_missing_secret_and_counts_none_as_a_change(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before = (folder / "config.yaml").read_bytes()
    done = run_tdmr1("train", "--resume", folder, code=2, **VARIABLES)
    for place in PLACES:
        assert f"(rewards.0.options.{place})" in done.stderr
    assert "--set rewards.0.options.api_key=env:NAME" in done.stderr
    assert "base_url=https://me:${NAME}@host" in done.stderr
    assert (folder / "config.yaml").read_bytes() == before
    given = {"passcode": PASSCODE, "login.pin": PIN, "headers.authorization": HEADER, "number_token": NUMBER}
    sets = [f"rewards.0.options.{name}={value}" for name, value in given.items()]
    sets += ["rewards.0.options.api_key=env:KEY", f"rewards.0.options.base_url={URL.replace(PASSWORD, '${PASSWORD}')}"]
    sets = [part for each in sets for part in ("--set", each)]
    done = run_tdmr1("train", "--resume", folder, *sets, KEY=KEY, PASSWORD=PASSWORD, code=2)
    assert "environment variable MY_SECRET" in done.stderr
    done = run_tdmr1("train", "--resume", folder, *sets, KEY=KEY, PASSWORD=PASSWORD, **VARIABLES)
    assert " was " not in done.stderr
    (line,) = (folder / "resumes.jsonl").read_text().splitlines()
    assert json.loads(line)["changes"] == {}
    assert secrets_in(done.stdout + done.stderr) == []
    assert written(folder) == {}
    (reward,) = yaml.safe_load((folder / "config.yaml").read_text())["rewards"]
    assert reward["options"]["api_key"] == "env:KEY", "the next resume needs only the variable"
