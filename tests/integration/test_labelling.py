"""The labelling server as a process: confirmed answers survive a kill, and several people share the work."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from urllib.parse import urlparse

import pytest
import requests
from support.command_line import environment, run_tdmr1
from support.errors import raises
from support.feedback_server import Label, Person, draw_folder, labelling
from support.paths import ROOT
from support.waiting import wait_until

from tdmr1_rewards.feedback.server import PAGE
from tdmr1_rewards.feedback.serving import FeedbackPage
from tdmr1_rewards.feedback.store import FeedbackStore

pytestmark = pytest.mark.integration

ANSWERS = ("like", "dislike", "skip")


def together(people, work):
    """Run `work(person)` in one thread per person, and raise the first failure."""
    failures = []

    def one(person):
        try:
            work(person)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def rows(folder, query):
    with sqlite3.connect(folder / "feedback" / "answers.sqlite") as connection:
        return connection.execute(query).fetchall()


def test_confirmed_answers_survive_a_kill(tmp_path):
    folder = draw_folder(tmp_path / "pictures", 300)
    confirmed, lock = {}, threading.Lock()
    with labelling(folder, "--judges", 5, fresh=True) as label:
        enough = threading.Event()

        def judge(person):
            try:
                while offers := person.offers():
                    for number, offer in enumerate(offers):
                        answer = ANSWERS[number % 3]
                        key = person.answer(offer, answer)
                        with lock:
                            confirmed[key] = (offer["item"], person.id, answer)
                            if len(confirmed) >= 60:
                                enough.set()
            except (requests.RequestException, AssertionError):
                assert enough.is_set()

        people = [Person(label.url, f"p{number}") for number in range(5)]
        killer = threading.Thread(target=lambda: (enough.wait(120), label.kill()))
        killer.start()
        together(people, judge)
        killer.join()
        assert label.process.returncode == -signal.SIGKILL
    assert len(confirmed) >= 60
    kept = {
        key: (item, person, answer)
        for key, item, person, answer in rows(folder, "SELECT key, item, person, answer FROM answers")
    }
    assert {key: kept.get(key) for key in confirmed} == confirmed
    with labelling(folder, "--judges", 5) as restarted:
        assert restarted.url == label.url
        person = Person(restarted.url, "p0")
        judged = {item for item, name, _ in kept.values() if name == "p0"}
        assert judged.isdisjoint(offer["item"] for offer in person.offers(64))
        assert f"{len(kept)} answers (+0)" in restarted.interrupt()


@pytest.mark.parametrize("images", [40, pytest.param(200, marks=pytest.mark.long)])
def test_the_answers_of_five_people_are_stored_once_each(tmp_path, images):
    folder, answers = draw_folder(tmp_path / "pictures", images), 5 * images
    with labelling(folder, "--judges", 5) as label:
        given, lock = [], threading.Lock()

        def judge(person):
            while offers := person.offers(8):
                for offer in offers:
                    key = person.answer(offer, "like")
                    person.answer(offer, "like", key)  # the page also repeats a request without a reply
                    with lock:
                        given.append((offer["item"], person.id))

        together([Person(label.url, f"p{number}") for number in range(5)], judge)
        assert len(given) == len(set(given)) == answers
        stored = rows(folder, "SELECT item, person FROM answers WHERE withdrawn IS NULL")
        assert sorted(stored) == sorted(given)
        assert rows(folder, "SELECT count(*) FROM answers") == [(answers,)]
        messages = label.interrupt()
    assert label.process.returncode == 0
    assert f"{answers} answers (+{answers})" in messages
    assert "Traceback" not in messages


def test_with_one_judge_per_image_people_share_the_work(tmp_path):
    folder = draw_folder(tmp_path / "pictures", 60)
    with labelling(folder) as label:

        def judge(person):
            while offers := person.offers(3):
                for offer in offers:
                    person.answer(offer, "like")

        together([Person(label.url, f"p{number}") for number in range(3)], judge)
        counts = Counter(item for (item,) in rows(folder, "SELECT item FROM answers"))
        assert len(counts) == 60
        assert set(counts.values()) == {1}


def send_raw(url, head, chunks):
    """Send a raw request until the server closes the connection; returns its reply and the number of bytes sent."""
    place = urlparse(url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.sendall(head.encode())
        sent = 0
        try:
            for chunk in chunks:
                connection.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
        try:
            answer = connection.recv(200)
        except ConnectionResetError:
            answer = b""
    return answer.decode(), sent


def test_50_megabytes_are_refused_before_they_are_read_and_logged(tmp_path):
    folder = draw_folder(tmp_path / "pictures", 2)
    with labelling(folder) as label:
        head = (
            f"POST /api/answers HTTP/1.1\r\nHost: {urlparse(label.url).netloc}\r\n"
            f"Authorization: Bearer {urlparse(label.url).fragment}\r\n"
        )
        answer, _ = send_raw(label.url, f"{head}Content-Length: 50000000\r\n\r\n", [])
        assert " 413 " in answer
        chunk = b"186a0\r\n" + b" " * 100_000 + b"\r\n"
        answer, sent = send_raw(label.url, f"{head}Transfer-Encoding: chunked\r\n\r\n", [chunk] * 500)
        assert " 413 " in answer or not answer
        assert sent < 50_000_000
        messages = label.interrupt()
    log = (folder / "feedback" / "server.log").read_text()
    for text in (messages, log):
        assert text.count("refused (413)") == 2
        assert urlparse(label.url).fragment not in text


def test_only_the_owner_can_read_the_token_and_the_link_stays_the_same(tmp_path):
    folder = draw_folder(tmp_path / "pictures", 2)
    with labelling(folder) as first:
        first.interrupt()
    token = folder / "feedback" / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert first.url.endswith(f"/#{token.read_text().strip()}")
    with labelling(folder) as second:
        assert second.url == first.url
        third = tdmr1(folder, "--no-open", code=2)
        assert f"serves {folder} at {second.url} [feedback-store]" in third.stderr
        assert len(Person(second.url, "p").offers()) == 2
        second.interrupt()
    with labelling(folder) as third:  # the refused command has not changed the port
        assert third.url == second.url


def test_a_page_ends_when_its_parent_is_killed(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from tdmr1_rewards.feedback.serving import FeedbackPage\n"
        "page = FeedbackPage.start(Path(sys.argv[1])); print(page.url, page.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env=environment(), text=True
    )
    url, pid = parent.stdout.readline().split()
    assert Person(url, "p").offers() == []
    parent.kill()
    parent.communicate()
    assert ended(int(pid))
    with pytest.raises(requests.ConnectionError):
        Person(url, "p").offers()


def ended(pid, patience=30):
    limit = time.monotonic() + patience
    while time.monotonic() < limit:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_killed_page_is_restarted_at_the_same_url(tmp_path):
    page = FeedbackPage.start(tmp_path)
    try:
        url, pid = page.url, page.pid
        page.ensure()
        assert page.pid == pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        page.ensure()
        assert page.pid != pid
        assert page.url == url
        assert Person(url, "p").offers() == []
        pid = page.pid
    finally:
        page.stop()
    assert ended(pid, 1)


def test_page_and_parent_share_rounds_and_answers(tmp_path):
    from PIL import Image

    from tdmr1_rewards.feedback.store import NewItem

    page, store = FeedbackPage.start(tmp_path), FeedbackStore(tmp_path)
    try:
        person = Person(page.url, "p")
        opened = store.open_round("t", [[NewItem(Image.new("RGB", (4, 4)), "x")]], run="r", step=1)
        (offer,) = person.offers()
        person.answer(offer, "dislike")
        assert [given.answer for given in store.answers(store.items_of(opened.id))] == ["dislike"]
    finally:
        store.close()
        page.stop()


def test_a_page_that_cannot_start_raises_the_error_of_its_process(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with raises("address-invalid", host="127.0.0.1", port=port):
            FeedbackPage.start(tmp_path, port=port)
    assert not (tmp_path / "answers.sqlite-wal").exists()
    (tmp_path / "answers.sqlite").write_text("no database " * 100)
    with raises("feedback-store", path=str(tmp_path / "answers.sqlite")):
        FeedbackPage.start(tmp_path)


def test_the_page_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.rpartition("/")[2] for name in archive.namelist() if "/feedback/page/" in name}
    assert packed == {path.name for path in PAGE.iterdir()}


def test_a_damaged_database_is_reported_and_kept(tmp_path):
    folder = draw_folder(tmp_path / "pictures", 30)
    with labelling(folder) as label:
        label.interrupt()
    path = folder / "feedback" / "answers.sqlite"
    content = path.read_bytes()[:-4096] + b"\xff" * 4096
    path.write_bytes(content)
    for words in ((folder, "--no-open"), (folder, "--export", tmp_path / "a.csv")):
        done = tdmr1(*words, code=2)
        assert f"error: {path} is damaged" in done.stderr
        assert "[feedback-store]" in done.stderr
    assert path.read_bytes() == content


def test_a_folder_with_broken_images_is_labelled_without_them(tmp_path):
    folder = draw_folder(tmp_path / "pictures", 4)
    (folder / "0001.png").write_bytes((folder / "0001.png").read_bytes()[:40] + b"\xdb\x09\xba\xf9" * 9)
    with labelling(folder, whole=False) as label:
        person = Person(label.url, "p")
        wait_until(lambda: len(person.offers()) == 3)  # the images are read one after another
        messages = label.interrupt()
    assert f"warning: cannot read {folder / '0001.png'} as an image; it is skipped" in messages
    assert "1 of 4 images cannot be read" in messages


def test_the_benchmark_with_many_clients_prints_a_table():
    command = [sys.executable, "benchmarks/stress/clients.py", "--clients", "4", "--slow", "3", "--images", "40"]
    done = subprocess.run(
        [*command, "--seconds", "1.5"], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    table = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if len(line.split()) == 6}
    assert {"page", "state", "items", "image", "all"} <= table.keys()
    assert all(int(row[0]) > 0 and int(row[1]) == 0 for row in table.values())


def tdmr1(*words, code=0):
    return run_tdmr1("label", *words, code=code)


def test_answers_are_exported_and_wrong_arguments_are_refused(tmp_path):
    folder = draw_folder(tmp_path / "pictures", 4)
    assert "[feedback-empty]" in tdmr1(folder, "--export", tmp_path / "a.csv", code=2).stderr
    with labelling(folder) as label:
        person = Person(label.url, "p")
        for offer in person.offers():
            person.answer(offer, "like")
        done = tdmr1(folder, "--export", tmp_path / "a.jsonl", "--json")  # while the page is open
        assert json.loads(done.stdout) == {"file": str(tmp_path / "a.jsonl"), "answers": 4}
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert {answer["prompt"] for answer in answers} == {"two red circles", "a dog in the snow"}
    assert "[argument-invalid]" in tdmr1(folder, "--export", tmp_path / "a.txt", code=2).stderr
    (tmp_path / "empty").mkdir()
    assert "[feedback-empty]" in tdmr1(tmp_path / "empty", code=2).stderr
    assert not (tmp_path / "empty" / "feedback").exists()
    assert "[file-missing]" in tdmr1(tmp_path / "nothing", code=2).stderr
    (tmp_path / "empty" / "config.yaml").write_text("")
    messages = tdmr1(tmp_path / "empty", code=2).stderr
    assert "[feedback-empty]" in messages
    assert "tdmr1 sample" in messages


def test_a_run_shows_the_images_that_still_lack_answers(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    from PIL import Image

    from tdmr1_rewards.feedback.store import NewItem

    store = FeedbackStore(tmp_path / "feedback")
    groups = [[NewItem(Image.new("RGB", (4, 4), (number, 0, 0)), "x") for number in range(3)]]
    opened = store.open_round("iteration 4", groups, run="r", step=4)
    one, *missing = store.items_of(opened.id)
    store.give(key="k", item_id=one.id, round_id=opened.id, person="q", answer="like")
    store.close_round(opened.id)
    store.close()
    with labelling(tmp_path) as label:
        assert label.document["pictures"] == 2
        assert [offer["item"] for offer in Person(label.url, "p").offers()] == [item.id for item in missing]
        label.interrupt()
    store = FeedbackStore(tmp_path / "feedback")
    assert store.open_rounds() == []
    store.close()


def test_a_host_that_other_machines_can_reach_is_a_warning(tmp_path):
    label = Label(draw_folder(tmp_path / "pictures", 1), "--host", "0.0.0.0")
    try:
        port, token = urlparse(label.url).port, urlparse(label.url).fragment
        assert len(Person(f"http://127.0.0.1:{port}/#{token}", "p").offers()) == 1
        messages = label.interrupt()
    finally:
        label.kill()
    assert "warning: " in messages
    assert "0.0.0.0" in messages
