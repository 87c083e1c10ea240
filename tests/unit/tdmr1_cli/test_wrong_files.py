"""Files of the wrong kind and values of the wrong kind on the command line: exit code 2, and nothing blocks."""

import os
import struct
import zipfile

import pytest
from PIL import Image

from tdmr1_cli.main import main

pytestmark = pytest.mark.unit

DEEP = "[" * 100_000 + "]" * 100_000
BOMB = "a: &a0 [x, x]\n" + "".join(f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each wrong kind."""
    folder = tmp_path_factory.mktemp("wrong")
    Image.new("RGB", (8, 8)).save(folder / "image.jpg")
    (folder / "image.txt").write_bytes((folder / "image.jpg").read_bytes())
    os.mkfifo(folder / "pipe")
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("a", "b")
    (folder / "empty.txt").touch()
    (folder / "prompts.txt").write_text("five circles\n")
    (folder / "bomb.yaml").write_text(BOMB)
    (folder / "other.yaml").write_text("model: {_component_: llama2}\nepochs: 3\n")
    (folder / "deep.json").write_text(DEEP)
    (folder / "deep.jsonl").write_text(f'{{"prompt": "five circles", "a": {DEEP}}}\n')
    (folder / "digits.jsonl").write_text('{"prompt": "five circles", "a": ' + "9" * 5000 + "}\n")
    (folder / "surrogate.jsonl").write_text('{"prompt": "five circles", "a": {"\\ud800": 1}}\n')
    (folder / "long.jsonl").write_text('{"prompt": "five circles", "a": "' + "x" * 2_000_000 + '"}\n')
    (folder / "include.jsonl").write_text('{"prompt": "five circles", "include": {"count": 5}}\n')
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    (folder / "model").mkdir()
    (folder / "model/model_index.json").write_text(DEEP)
    (folder / "run").mkdir()
    os.mkfifo(folder / "run/config.yaml")
    return folder


CASES = {
    "train @pipe": "it is a pipe or device",
    "train /dev/zero": "it is a pipe or device",
    "train @image.jpg": "is not UTF-8 text",
    "train @bomb.yaml": "more than 100000 values",
    "train @other.yaml": "epochs is not a setting",
    "train @run": "cannot be read",
    "config validate @pipe @bomb.yaml": "it is a pipe or device",
    "train --prompts @pipe --dry-run": "pipe",
    "train --prompts @image.jpg --dry-run": "unknown suffix '.jpg'",
    "train --prompts @image.txt --dry-run": "is not UTF-8 text",
    "train --prompts @empty.txt --dry-run": "contains no prompts",
    "train --prompts @deep.json --dry-run": "nested too deeply",
    "train --prompts @deep.jsonl --dry-run": "line 1 has values that are nested too deeply",
    "train --prompts @digits.jsonl --dry-run": "line 1 has a number with 5000 digits",
    "train --prompts @surrogate.jsonl --dry-run": "line 1 has a string with half of a surrogate pair",
    "train --prompts @long.jsonl --dry-run": "line 1 has 2000035 characters, more than",
    "train --prompts @include.jsonl --dry-run": "the metadata's include is {'count': 5}, not a list",
    "train --lora @prompts.txt --dry-run": "prompts.txt",
    "train --lora @bomb.yaml --dry-run": "bomb.yaml",
    "train --lora @archive.zip --dry-run": "archive.zip",
    "train --lora @pipe --dry-run": "pipe",
    "train --lora @header.safetensors --dry-run": "is not a readable safetensors file",
    "train --model-path @model --dry-run": "model_index.json of a pipeline is missing or damaged",
    "train --model-path @image.jpg --dry-run": "image.jpg is not a pipeline directory",
    "train --set model.device=meta --dry-run": "the device 'meta' does not exist here",
    "train --set model.device=cuda:99 --dry-run": "the device 'cuda:99' does not exist here",
    'train --set memory.prompt_cache="\\ud800" --dry-run': "memory.prompt_cache must be a path or null",
    'train --set model.name="a\\0b" --dry-run': "model.name must be a text",
    "evaluate @run": "@run is no run folder or pipeline directory",
    "report @prompts.txt": "@prompts.txt is not a run folder",
    "sample tiny-tdm --prompt x --output o --images 1000000000000": "--images",
    "sample tiny-tdm --prompt x --output o --guidance nan": "--guidance",
    "evaluate tiny-tdm --seed 9223372036854775808": "--seed",
    "probe tiny-tdm --updates 0": "--updates",
    "plan --tflops inf": "--tflops",
    f"plan --gpu {'9' * 400}": "neither a known card nor a size in GB or GiB",
    "train --processes 1000000000": "--processes",
    "rewards serve object_count --port 65536": "--port",
    "rewards try object_count @pipe --prompt x": "pipe",
}
"""Command lines, in which @ stands for the folder of the wrong files, and what the message contains."""


@pytest.mark.parametrize("line", CASES)
def test_a_wrong_file_or_value_is_named(files, tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("@", f"{files}/") for word in line.split()]) == 2
    printed = capsys.readouterr().err
    assert CASES[line].replace("@", f"{files}/") in printed
    assert "hint: " in printed
    assert "report it" not in printed
    assert list(tmp_path.iterdir()) == []
