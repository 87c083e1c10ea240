"""The labelling page in a real browser: keys, clicks, touch, two tabs, a reload, and a killed server."""

import re
import time

import pytest
from PIL import Image
from playwright.sync_api import expect
from support.accessibility import serious_findings
from support.browsing import DESKTOP, PHONE, open_tab
from support.feedback_server import Label, Person
from support.waiting import wait_until

from tdmr1_rewards.feedback.store import FeedbackStore, NewItem

pytestmark = pytest.mark.browser

WORDS = {"like": "ArrowRight", "dislike": "ArrowLeft", "skip": "Space"}


def answers(label):
    """(number of the image, answer) of each answer in the store, the oldest first."""
    store = FeedbackStore(label.folder / "feedback")
    try:
        numbers = {item.id: number for number, item in enumerate(store.items())}
        return [(numbers[given.item.id], given.answer) for given in store.answers()]
    finally:
        store.close()


def shown(page):
    """The URL of the image on the stage, once there is one."""
    return page.locator("#stage img").first.get_attribute("src")


def judge(page, key):
    """Press a key and wait until another image, or none, is on the stage.

    The page ignores answers while an image loads, and an undo loads images again.
    """
    if key != "z":
        expect(page.locator("#skip")).to_be_enabled()
    before = shown(page)
    page.keyboard.press(key)
    page.wait_for_function("before => document.querySelector('#stage img')?.src !== before", arg=before)


def test_keys_answer_until_no_image_is_left(visit, label):
    running = label(4)
    page = visit(running.url)
    expect(page.locator("#prompt")).to_have_text("two red circles")
    expect(page).to_have_title("tdmr1 label")
    for key in ("ArrowRight", "ArrowLeft", "Space", "ArrowRight"):
        judge(page, key)
    expect(page.locator("#notice-title")).to_have_text("Thank you, that is all")
    # images of one prompt are shown together: 0 and 2, then 1 and 3
    wait_until(lambda: len(answers(running)) == 4)
    given = [answer for _, answer in answers(running)]
    assert given == ["like", "dislike", "skip", "like"]
    expect(page.locator("#count")).to_contain_text("4 of 4 judged · 0 left for you")


def test_an_answer_is_stored_for_the_image_on_the_stage(visit, label):
    """The color of an image identifies it."""
    running = label(6)
    page = visit(running.url)
    seen = []
    for word in ("like", "dislike", "like", "skip", "dislike", "like"):
        page.wait_for_selector("#stage img")
        number = page.evaluate(
            """() => {
                const image = document.querySelector('#stage img'), canvas = document.createElement('canvas');
                const context = canvas.getContext('2d');
                context.drawImage(image, 0, 0);
                return context.getImageData(2, 2, 1, 1).data[0];
            }"""
        )
        seen.append((number, word))
        judge(page, WORDS[word])
    wait_until(lambda: len(answers(running)) == 6)
    numbers = [2 * n if n < 3 else 2 * n - 5 for n in range(6)]  # items are listed prompt by prompt
    assert [(numbers[item], answer) for item, answer in answers(running)] == seen


def test_clicks_answer_and_afterwards_the_space_bar_skips(visit, label):
    running = label(4)
    page = visit(running.url)
    page.wait_for_selector("#stage img")
    before = shown(page)
    page.click("#like")
    page.wait_for_function("before => document.querySelector('#stage img')?.src !== before", arg=before)
    judge(page, "Space")
    page.click("#dislike")
    wait_until(lambda: [answer for _, answer in answers(running)] == ["like", "skip", "dislike"])


def test_a_held_key_answers_once(visit, label):
    running = label(6)
    page = visit(running.url)
    page.wait_for_selector("#stage img")
    for _ in range(5):
        page.keyboard.down("ArrowRight")
    page.keyboard.up("ArrowRight")
    wait_until(lambda: answers(running))
    page.wait_for_timeout(500)
    assert len(answers(running)) == 1


def test_undo_shows_earlier_images_again_in_order(visit, label):
    running = label(6)
    page = visit(running.url)
    images = []
    for key in ("ArrowRight", "ArrowLeft", "ArrowRight"):
        page.wait_for_selector("#stage img")
        images.append(page.evaluate("() => document.querySelector('#stage img').src"))
        judge(page, key)
    wait_until(lambda: len(answers(running)) == 3)
    judge(page, "z")
    wait_until(lambda: len(answers(running)) == 2)
    judge(page, "z")
    wait_until(lambda: [answer for _, answer in answers(running)] == ["like"])
    judge(page, "ArrowRight")
    wait_until(lambda: [answer for _, answer in answers(running)] == ["like", "like"])
    page.click("#undo")
    page.click("#undo")
    wait_until(lambda: answers(running) == [])
    page.keyboard.press("z")
    expect(page.locator("#toast")).to_have_text("There is nothing to undo")


def test_the_group_view_answers_for_all_its_images(visit, label):
    running = label(12)
    page = visit(running.url)
    page.wait_for_selector("#stage img")
    page.keyboard.press("g")
    expect(page.locator("#stage .card")).to_have_count(6)
    expect(page.locator("#side")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("1")
    page.keyboard.press("3")
    page.keyboard.press("3")
    page.locator("#stage .card").nth(3).click()
    expect(page.locator("#stage .card").nth(0)).to_have_attribute("aria-label", "image 1, liked")
    expect(page.locator("#stage .card").nth(2)).to_have_attribute("aria-label", "image 3, disliked")
    expect(page.locator("#dislike")).to_contain_text("Dislike rest")
    judge(page, "ArrowLeft")
    wait_until(lambda: len(answers(running)) == 6)
    assert [answer for _, answer in answers(running)] == ["like", "dislike", "dislike", "like", "dislike", "dislike"]
    expect(page.locator("#prompt")).to_have_text("a dog in the snow")
    page.keyboard.press("z")
    wait_until(lambda: answers(running) == [])
    expect(page.locator("#prompt")).to_have_text("two red circles")
    expect(page.locator("#stage .card")).to_have_count(6)
    for number in range(1, 7):
        page.keyboard.press(str(number))
    expect(page.locator("#skip")).to_contain_text("Send")
    judge(page, "Enter")
    wait_until(lambda: [answer for _, answer in answers(running)] == ["like"] * 6)
    page.reload()
    expect(page.locator("#stage .card")).to_have_count(6)  # the view is remembered


def test_two_tabs_of_one_person_share_the_work(visit, label):
    running = label(10)
    first = visit(running.url)
    first.wait_for_selector("#stage img")
    second = open_tab(first.context, running.url)
    second.wait_for_selector("#stage img")
    for _ in range(40):
        left = [page for page in (first, second) if page.locator("#stage img").count()]
        for page in left:  # a tab ignores a key just after the other tab has changed its image
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(1000)
    wait_until(lambda: len(answers(running)) == 10)
    store = FeedbackStore(running.folder / "feedback")
    assert len({given.person for given in store.answers()}) == 1
    with store._database.reading() as cursor:
        assert cursor.execute("SELECT count(*) FROM answers").fetchone() == (10,)
    store.close()
    expect(first.locator("#notice-title")).to_have_text("Thank you, that is all")
    expect(second.locator("#notice-title")).to_have_text("Thank you, that is all")


def test_after_a_reload_only_unjudged_images_are_shown(visit, label):
    running = label(8)
    page = visit(running.url)
    for _ in range(3):
        page.wait_for_selector("#stage img")
        judge(page, "ArrowRight")
    page.reload()
    page.wait_for_selector("#stage img")
    assert page.evaluate("() => localStorage['tdmr1.person'].length") == 24
    for _ in range(5):
        page.wait_for_selector("#stage img")
        judge(page, "ArrowLeft")
    expect(page.locator("#notice-title")).to_have_text("Thank you, that is all")
    wait_until(lambda: len(answers(running)) == 8)
    given = answers(running)
    assert len({number for number, _ in given}) == 8
    assert [answer for _, answer in given] == ["like"] * 3 + ["dislike"] * 5


def test_answers_are_sent_after_a_killed_server_is_restarted(visit, label):
    running = label(8)
    page = visit(running.url)
    page.wait_for_selector("#stage img")
    expect(page.locator("#count")).to_contain_text("0 of 8")
    page.wait_for_load_state("networkidle")  # the next images are loaded
    judge(page, "ArrowRight")
    wait_until(lambda: len(answers(running)) == 1)
    running.kill()
    for key in ("ArrowRight", "ArrowLeft", "ArrowRight"):
        judge(page, key)
    # 4 if the server was killed before its reply to the first answer arrived; that answer is then sent again.
    expect(page.locator("#waiting")).to_have_text(re.compile("[34] answers waiting to be sent"))
    restarted = Label(running.folder)
    try:
        assert restarted.url == running.url
        expect(page.locator("#waiting")).to_be_hidden()
        assert [answer for _, answer in answers(running)] == ["like", "like", "dislike", "like"]
        page.reload()
        expect(page.locator("#count")).to_contain_text("4 of 8 judged · 4 left for you")
    finally:
        restarted.kill()


def test_unsent_answers_survive_closing_the_page(visit, label):
    running = label(4)
    page = visit(running.url)
    page.wait_for_selector("#stage img")
    page.wait_for_load_state("networkidle")
    page.context.route("**/api/answers", lambda route: route.abort())
    judge(page, "ArrowRight")
    expect(page.locator("#waiting")).to_have_text("1 answer waiting to be sent")
    page.close()
    assert answers(running) == []
    page.context.unroute("**/api/answers")
    reopened = open_tab(page.context, running.url)
    wait_until(lambda: [answer for _, answer in answers(running)] == ["like"])
    expect(reopened.locator("#waiting")).to_be_hidden()


def test_agreement_progress_and_the_number_of_people_are_shown(visit, label):
    running = label(4, "--judges", 2)
    other = Person(running.url, "other")
    for offer in other.offers():
        key = other.answer(offer, "like")
    page = visit(running.url)
    page.wait_for_selector("#stage img")
    judge(page, "ArrowRight")
    judge(page, "ArrowLeft")
    expect(page.locator("#agreement")).to_have_text("50 % agree")
    other.answer(offer, "like", key)  # a repeated answer is not stored; the person counts as present again
    expect(page.locator("#people")).to_have_text("2 people")
    expect(page.locator("#count")).to_contain_text("2 of 4 judged · 2 left for you · 2 people each")
    assert page.evaluate("() => document.querySelector('progress').value") == 2
    page.keyboard.press("?")
    expect(page.locator("#agreement-explained")).to_contain_text("Of 2 pairs of answers")
    page.fill("#name", "Ada")
    page.click("#help .done")
    judge(page, "ArrowRight")
    store = FeedbackStore(running.folder / "feedback")
    wait_until(lambda: "Ada" in {given.name for given in store.answers()})
    store.close()


def test_a_new_round_appears_by_itself_with_its_countdown(visit, label):
    running = label(1)
    page = visit(running.url)
    page.wait_for_selector("#stage img")
    judge(page, "ArrowRight")
    expect(page.locator("#notice-title")).to_have_text("Thank you, that is all")
    store = FeedbackStore(running.folder / "feedback")
    opened = store.open_round(
        "iteration 7", [[NewItem(Image.new("RGB", (64, 64)), "a castle")]], run="r", step=7, deadline=time.time() + 90
    )
    expect(page.locator("#prompt")).to_have_text("a castle")
    expect(page.locator("#title")).to_have_text("iteration 7")
    expect(page.locator("#countdown")).to_have_text(re.compile(r"^1:\d\d left$"))
    store.set_message("training goes on")
    store.close_open_rounds(opened.run)
    store.close_open_rounds("label images")
    expect(page.locator("#notice-text")).to_have_text("training goes on")
    expect(page.locator("#countdown")).to_be_hidden()
    store.close()


def test_the_question_and_the_meaning_of_the_answers_are_shown(visit, label):
    running = label(1, "--question", "Is this <b>red</b>?")
    assert running.document["question"] == "Is this <b>red</b>?"
    page = visit(running.url)
    expect(page.locator("#question")).to_have_text("Is this <b>red</b>? ♥ Like: yes · ✕ Dislike: no · Skip: no opinion")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_contain_text("The question is: Is this <b>red</b>? Like means yes")
    page.click("#help .done")
    judge(page, "ArrowRight")
    expect(page.locator("#question")).to_be_hidden()


def test_the_counter_changes_with_the_key_press(visit, label):
    """Answers are held back, so that only the page itself can know of them."""
    running = label(3)
    page = visit(running.url)
    page.wait_for_selector("#stage img")
    expect(page.locator("#count")).to_have_text("0 of 3 judged · 3 left for you")
    page.wait_for_load_state("networkidle")
    page.context.route("**/api/answers", lambda route: route.abort())
    judge(page, "ArrowRight")
    assert page.inner_text("#count") == "1 of 3 judged · 2 left for you"
    judge(page, "ArrowRight")
    assert page.inner_text("#count") == "2 of 3 judged · 1 left for you"
    assert page.evaluate("() => document.querySelector('progress').value") == 2
    page.context.unroute("**/api/answers")
    wait_until(lambda: len(answers(running)) == 2)
    page.wait_for_timeout(2500)  # one request for the state
    assert page.inner_text("#count") == "2 of 3 judged · 1 left for you"
    page.keyboard.press("z")
    assert page.inner_text("#count") == "1 of 3 judged · 2 left for you"
    wait_until(lambda: len(answers(running)) == 1)
    expect(page.locator("#count")).to_have_text("1 of 3 judged · 2 left for you")


def test_the_end_page_has_no_button_for_groups(visit, label):
    running = label(1)
    page = visit(running.url)
    expect(page.locator("#side")).to_be_visible()
    judge(page, "ArrowRight")
    expect(page.locator("#notice-title")).to_have_text("Thank you, that is all")
    expect(page.locator("#side")).to_be_hidden()
    expect(page.locator("#undo")).to_be_visible()
    page.keyboard.press("z")
    expect(page.locator("#side")).to_be_visible()


@pytest.mark.parametrize("size", [(240, 60), (60, 240)], ids=["wide", "tall"])
def test_marks_are_inside_the_images_of_a_group(visit, tmp_path, size):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", size, (60 * number, 90, 90)).save(folder / f"{number}.png")
    running = Label(folder)
    try:
        page = visit(running.url)
        page.wait_for_selector("#stage img")
        page.keyboard.press("g")
        expect(page.locator("#stage .card")).to_have_count(4)
        page.keyboard.press("1")
        page.keyboard.press("2")
        page.keyboard.press("2")
        page.wait_for_function("() => !document.querySelector('#stage').getAnimations().length")
        for card in page.locator("#stage .card").all():
            image, badge = card.locator("img").bounding_box(), card.locator(".badge").bounding_box()
            for start, length in (("x", "width"), ("y", "height")):
                assert image[start] <= badge[start]
                assert badge[start] + badge[length] <= image[start] + image[length]
        focused = page.locator("#stage .card").first
        focused.focus()
        assert focused.evaluate("card => getComputedStyle(card).outlineStyle") == "none"
    finally:
        running.kill()


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_is_accessible(visit, label, colors, device):
    """One image, a group with marks, the help and the end page."""
    page = visit(label(2).url, color_scheme=colors, reduced_motion="reduce", **device)
    page.wait_for_selector("#stage img")
    page.wait_for_selector("#count:not(:empty)")
    found = serious_findings(page)
    page.locator("#side").click()
    expect(page.locator("#stage .card")).to_have_count(1)
    page.locator("#stage .card").click()
    found += serious_findings(page)
    page.keyboard.press("?")
    found += serious_findings(page)
    page.click("#help .done")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => !document.querySelector('#notice').hidden")
    found += serious_findings(page)
    assert found == []


@pytest.mark.parametrize("link", [lambda url: url[:-4] + "xxxx", lambda url: url.partition("#")[0]])
def test_a_wrong_link_shows_a_message(visit, label, link):
    running = label(1)
    page = visit(link(running.url))
    expect(page.locator("#notice-title")).to_have_text("This link does not work")
    expect(page.locator("#notice-text")).to_contain_text("Open the complete link that tdmr1 printed")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    assert answers(running) == []


@pytest.mark.parametrize("side", [False, True])
def test_the_page_fits_a_phone_in_portrait(visit, label, side):
    running = label(12)
    page = visit(running.url, **PHONE)
    page.wait_for_selector("#stage img")
    if side:
        page.tap("#side")
        expect(page.locator("#stage .card")).to_have_count(6)
    width, scrolled, height, tall = page.evaluate(
        "() => [innerWidth, document.documentElement.scrollWidth, innerHeight, document.documentElement.scrollHeight]"
    )
    assert scrolled <= width == 390
    assert tall <= height
    for button in page.locator("button:visible").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 44, button.get_attribute("id")
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    for image in page.locator("#stage img").all():
        assert image.bounding_box()["width"] >= 120
    page.tap("#like")
    wait_until(lambda: [answer for _, answer in answers(running)] == ["like"] * (6 if side else 1))


def test_a_swipe_answers(visit, label):
    running = label(3)
    page = visit(running.url, **PHONE)
    page.wait_for_selector("#stage img")
    finger = page.context.new_cdp_session(page)
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": 120, "y": 400}]})
    for x in (160, 220, 280):
        finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": 405}]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    wait_until(lambda: [answer for _, answer in answers(running)] == ["like"])


def test_small_images_are_enlarged_with_sharp_pixels_and_fit(visit, label):
    page = visit(label(2).url)
    image = page.locator("#stage img")
    expect(image).to_have_css("image-rendering", "pixelated")
    page.wait_for_function("() => !document.querySelector('#stage').getAnimations().length")
    box = image.bounding_box()
    assert (box["width"], box["height"]) == pytest.approx((480, 480), abs=0.5)


def test_a_page_of_another_origin_cannot_read_the_state(visit, label):
    """Even if it knows the address and the token: the browser blocks the request."""
    running = label(1)
    address, _, token = running.url.partition("/#")
    page = visit(f"{address.replace('127.0.0.1', 'localhost')}/page.css")
    thrown = page.evaluate(
        """([address, token]) => fetch(`${address}/api/state?person=p`, {headers: {Authorization: `Bearer ${token}`}})
            .then((response) => response.status, (error) => error.name)""",
        [address, token],
    )
    assert thrown == "TypeError"
