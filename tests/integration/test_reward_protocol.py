"""Runs the servers and clients of docs/reward_protocol.md, in Python, JavaScript and bash, and the page's commands."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from support.command_line import environment, run_tdmr1, start_tdmr1
from support.errors import raises
from support.other_server import OtherServer, running
from support.paths import ROOT
from support.programs import find_program
from support.protocol_page import PAGE, lines, message
from support.reward_batches import batch_of, make_batch

from tdmr1_rewards.builtin.jpeg_size import jpeg_kilobytes
from tdmr1_rewards.calling.wire import encode_batch, encode_image
from tdmr1_rewards.sources.remote import RemoteOptions, RemoteReward

pytestmark = pytest.mark.integration

TOKEN = "a-token/for+tests="
ADDRESS_ON_THE_PAGE = "http://127.0.0.1:8000"


def words(line: str) -> list[str]:
    """The command of a line, with the paths of the programs."""
    program, script, *arguments = shlex.split(line)
    if script.endswith(".sh"):
        find_program("curl")
    return [sys.executable if program == "python" else find_program(program), str(ROOT / script), *arguments]


def varied_image() -> np.ndarray:
    """An image (48, 64, 3): noise, and a smooth half."""
    image = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
    image[24:] = np.add.outer(3 * np.arange(24), np.arange(64))[..., None]
    return image


def png_with_all_filters(image: np.ndarray) -> bytes:
    """The PNG file of an image (H, W, 3) whose rows have the filters 0 to 4 in turn. Pillow never uses some of them."""
    height, width, _ = image.shape
    padded = np.zeros((height + 1, width + 1, 3), int)
    padded[1:, 1:] = image
    current, left, up, corner = padded[1:, 1:], padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    distances = np.abs([up - corner, left - corner, left + up - 2 * corner])  # (3, H, W, 3)
    paeth = np.choose(distances.argmin(0), [left, up, corner])
    predicted = [np.zeros_like(current), left, up, (left + up) // 2, paeth]
    filtered = [((current - each) % 256).astype(np.uint8) for each in predicted]
    rows = [bytes([y % 5]) + filtered[y % 5][y].tobytes() for y in range(height)]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    checksums = [struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    parts = [struct.pack(">I", len(data)) + kind + data for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(bytes.__add__, parts, checksums))


@contextmanager
def example_server(line: str) -> Iterator[str]:
    """Start a server of the page on a free port; yields its address without the name of the reward."""
    command = words(line.replace(" 8000", " 0"))
    variables = environment(TDMR1_REWARD_TOKEN=TOKEN)
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        printed = process.stdout.readline()
        yield re.fullmatch(r"serving brightness at (http://127\.0\.0\.1:\d+)/brightness\n", printed)[1]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module", params=lines("servers"), ids=lambda line: line.split()[0])
def server(request) -> Iterator[str]:
    with example_server(request.param) as address:
        yield address


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of `tdmr1 rewards serve jpeg_size`, without the name."""
    arguments = ["rewards", "serve", "jpeg_size", "--port", 0, "--device", "cpu"]
    process = start_tdmr1(*arguments, stdout=subprocess.PIPE, TDMR1_REWARD_TOKEN=TOKEN)
    try:
        yield re.search(r"(http://127\.0\.0\.1:\d+)/jpeg_size$", process.stdout.readline())[1]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with image.png."""
    folder = tmp_path_factory.mktemp("protocol")
    Image.fromarray(varied_image()).save(folder / "image.png")
    return folder


def changed(**fields) -> dict:
    """The batch of the page with other fields."""
    return message("request")["batch"] | fields


def post(address: str, body: object, token: str = TOKEN, path: str = "/score") -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(address + path, data=data, headers={"Authorization": f"Bearer {token}"}, timeout=60)


def client_of(address: str, token: str = TOKEN) -> RemoteReward:
    return RemoteReward(f"{address}/brightness", RemoteOptions(token=token, patience=0))


def run_client(line: str, address: str, folder: Path, token: str = TOKEN, prompt: str | None = None):
    command = words(line.replace(ADDRESS_ON_THE_PAGE, address))
    if prompt is not None:
        command[-1] = prompt
    variables = environment(TDMR1_REWARD_TOKEN=token)
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("name", "package"), [("node", "nodejs"), ("curl", "curl")])
def test_a_missing_program_fails_the_tests_with_a_message(monkeypatch, name, package):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.fail.Exception, match=f"^{name} is not installed: `apt-get install {package}`$"):
        find_program(name)


def test_the_page_names_every_example():
    files = {path.name for path in (ROOT / "examples" / "reward_protocol").iterdir() if path.is_file()}
    run = {Path(shlex.split(line)[1]).name for line in lines("servers") + lines("clients")}
    assert files == run == set(re.findall(r"^\| \[`([\w.]+)`\]", PAGE, re.MULTILINE))


def test_example_servers_return_the_mean_brightness_of_images_of_any_size(server):
    image = varied_image()
    reward = client_of(server)
    reward.setup("cpu")
    for pixels in (image, image[:1, :1], image[::-1, ::-1], image[:7, 20:23]):
        images = np.stack([pixels, 255 - pixels])
        assert reward(batch_of(images, ["a", "b"])).scores == pytest.approx(images.mean((1, 2, 3)) / 255, abs=1e-12)
    reward.close()


def test_example_servers_decode_every_filter_of_png(server):
    image = varied_image()
    file = png_with_all_filters(image)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), image)
    batch = changed(images=[base64.b64encode(file).decode()])
    answer = post(server, {"protocol": 1, "batch": batch}).json()
    assert answer["scores"] == pytest.approx([image.mean() / 255], abs=1e-12)


def test_example_servers_answer_the_request_of_the_page_with_its_scores(server):
    answer = post(server, message("request")).json()
    assert answer == {name: message("answer")[name] for name in ("protocol", "scores")}


def test_servers_ignore_unknown_fields(server, served):
    request = message("request")
    for place in (request, request["batch"], request["batch"]["context"]):
        place["new"] = {"a": 1}
    for address in (server, served):
        expected = post(address, message("request")).json()
        assert len(expected["scores"]) == 1
        assert post(address, request).json() == expected


def test_the_info_of_example_servers_is_taken_by_the_client(server):
    info = requests.get(f"{server}/info", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60).json()
    assert info.keys() <= message("info").keys()
    reward = client_of(server)
    reward.setup("cpu")
    assert reward._max_body == info["max_body"] == 64 * 1024 * 1024
    with raises("reward-unknown", found="brightness"):
        RemoteReward(f"{server}/other", RemoteOptions(token=TOKEN, patience=0)).setup("cpu")
    with raises("token-invalid", status=401):
        client_of(server, "wrong").setup("cpu")


@pytest.mark.parametrize(
    ("body", "token", "path", "status"),
    [
        (b"", TOKEN, "/score", 400),
        (b"[1]", TOKEN, "/score", 400),
        (b"null", TOKEN, "/score", 400),
        ({"protocol": 2, "batch": {}}, TOKEN, "/score", 400),
        ({"batch": {}}, TOKEN, "/score", 400),
        (message("request"), "wrong", "/score", 401),
        (message("request"), "", "/score", 401),
        (message("request"), TOKEN, "/nowhere", 404),
        ({"protocol": 1}, TOKEN, "/score", 422),
        ({"protocol": 1, "batch": changed(images=["gASVAA=="])}, TOKEN, "/score", 422),
        ({"protocol": 1, "batch": changed(images=[5])}, TOKEN, "/score", 422),
        ({"protocol": 1, "batch": changed(images=["iVBORw0KGgo="])}, TOKEN, "/score", 422),
    ],
)
def test_servers_refuse_invalid_requests_with_the_status_of_the_page(server, served, body, token, path, status):
    for address in (server, served):
        response = post(address, body, token, path)
        assert response.status_code == status, response.text
        assert isinstance(response.json()["error"], str)
    assert client_of(server)(make_batch("a")).scores == [0]


def test_servers_refuse_a_body_that_is_too_large(server):
    response = post(server, b" " * (64 * 1024 * 1024 + 1))
    assert response.status_code == 413
    assert client_of(server)(make_batch("a")).scores == [0]


def test_the_health_of_a_server_needs_no_token_but_other_requests_do(server, served):
    for address in (server, served):
        assert requests.get(f"{address}/health", timeout=60).json() == {"status": "ok"}
        assert requests.get(f"{address}/info", timeout=60).status_code == 401


def test_the_node_server_refuses_images_that_it_cannot_decode(tmp_path):
    """Another bit depth, transparency, interlacing, too few rows."""
    (line,) = [line for line in lines("servers") if line.startswith("node")]
    image = Image.fromarray(varied_image())
    with example_server(line) as address:
        for mode in ("L", "RGBA", "P"):
            batch = changed(images=[_png(image.convert(mode))])
            assert "8-bit RGB" in post(address, {"protocol": 1, "batch": batch}).json()["error"]
        cut = encode_image(image)[:2000]
        assert post(address, {"protocol": 1, "batch": changed(images=[cut])}).status_code == 422
        assert client_of(address)(make_batch("a")).scores == [0]


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_the_commands_of_the_page_work(folder):
    commands = lines("commands")
    assert len(commands) == 3
    with example_server(lines("servers")[0]) as address:
        for line in commands:
            program, *arguments = shlex.split(line.replace(ADDRESS_ON_THE_PAGE, address))
            assert program == "tdmr1"
            done = run_tdmr1(*arguments, cwd=folder, TDMR1_REWARD_TOKEN=TOKEN)
            assert done.stdout.strip(), line


def test_the_command_line_scores_an_image_on_example_servers(server, folder):
    source = f"remote:{server}/brightness"
    done = run_tdmr1("rewards", "try", source, "image.png", "--json", cwd=folder, TDMR1_REWARD_TOKEN=TOKEN)
    (image,) = json.loads(done.stdout)["images"]
    assert image["score"] == pytest.approx(varied_image().mean() / 255, abs=1e-12)


def test_half_of_a_surrogate_pair_in_the_details_can_be_printed(folder):
    """JavaScript writes one if it cuts a text in the middle of an emoji."""
    answer = rb'{"protocol": 1, "scores": [1], "details": [{"seen": "a \ud83d"}]}'
    with running(OtherServer(answer=answer)) as other:
        source = f"remote:{other.address}/brightness"
        assert "a ?" in run_tdmr1("rewards", "try", source, "image.png", cwd=folder).stdout


def test_mistakes_of_a_server_are_one_error_with_exit_code_2(folder):
    for info, answer, code in (
        ({"name": "brightness"}, {}, "server-protocol"),
        ({"protocol": 1, "name": "brightness"}, b'{"protocol": 1, "scores": [NaN]}', "reward-result"),
    ):
        with running(OtherServer(info, answer)) as other:
            source = f"remote:{other.address}/brightness"
            printed = run_tdmr1("rewards", "try", source, "image.png", cwd=folder, code=2).stderr
        assert printed.count("error: ") == 1
        assert f"[{code}]" in printed


def test_the_info_of_the_page_is_that_of_tdmr1(served):
    info = requests.get(f"{served}/info", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60).json()
    assert info == message("info")


@pytest.mark.parametrize("line", lines("clients"), ids=lambda line: Path(line.split()[1]).name)
def test_example_clients_print_the_score_of_tdmr1(served, folder, line):
    expected = -jpeg_kilobytes(Image.fromarray(varied_image()), 95)
    done = run_client(line, served, folder)
    assert (done.returncode, float(done.stdout)) == (0, expected), done.stderr
    reward = RemoteReward(f"{served}/jpeg_size", RemoteOptions(token=TOKEN, patience=0))
    assert reward(batch_of(varied_image()[None], ["a red square"])).scores == [expected]


@pytest.mark.parametrize("line", lines("clients"), ids=lambda line: Path(line.split()[1]).name)
def test_example_clients_report_an_error_of_the_server(served, folder, line):
    done = run_client(line, served, folder, token="wrong")
    assert done.returncode == 1
    assert "status 401" in done.stderr
    assert "no valid token" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("line", lines("clients"), ids=lambda line: Path(line.split()[1]).name)
@pytest.mark.parametrize("score", [-1e-05, None])
def test_example_clients_send_the_request_of_the_page(folder, line, score):
    prompt = 'a "red" square\\n, größer: 赤'
    answer = {"details": [{}], "scores": [score], "protocol": 1}
    with running(OtherServer(answer=answer)) as other:
        done = run_client(line, other.address, folder, prompt=prompt)
    assert done.returncode == 0, done.stderr
    (sent,) = other.requests
    (image,) = sent["batch"]["images"]
    assert base64.b64decode(image, validate=True) == (folder / "image.png").read_bytes()
    fields = encode_batch(batch_of([Image.new("RGB", (1, 1))], [prompt])) | {"images": [image]}
    assert sent == {"protocol": 1, "batch": fields}
    printed = done.stdout.strip()
    assert printed in ("null", "None") if score is None else float(printed) == score
