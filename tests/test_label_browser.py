"""The page in a real browser: ranked by dragging and by keys, tied, rated, taken back, loaded again; then trained on."""

import functools
import shutil

import pytest
from labeling import Client, desk_of, read, serving, write

from rlhf_jax import pipeline
from rlhf_jax.config import default_config
from rlhf_jax.runtime.files import read_json

pytest.importorskip("starlette", reason="starlette is not installed: EXTRAS=label")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: EXTRAS=label")

PATIENCE = 120  # seconds for what the page does; a busy machine is slow
ROWS = [
    {
        "prompt": "greet in Korean, then in Arabic",
        "completions": [
            "안녕하세요, 반갑습니다!",
            "مرحبا بك يا صديقي!",
            "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">",
            "red \u001b[31m and \u202e turned",
        ],
        "models": ["secret-a", "secret-b", "secret-c", "secret-d"],
    },
    {"prompt": "long", "completions": ["word " * 20_000, "short"], "finished": [False, True]},
    {"prompt": [{"role": "user", "content": "and why?"}], "completions": ["one", "two", "three"]},
]
FLAGS = ("--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --window-size=1360,860").split()  # fmt: skip


@pytest.fixture(scope="module")
def open_browser(tmp_path_factory):
    """A function that opens a browser with a profile of its own; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: EXTRAS=test")
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and driver):
        pytest.skip("no chromium or chromedriver: bash launch/test.sh --browser installs Debian's")
    opened = []

    def open_one():
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
            options.add_argument(flag)
        opened.append(webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)))
        opened[-1].set_page_load_timeout(PATIENCE)
        return opened[-1]

    yield open_one
    for browser in opened:
        browser.quit()


@pytest.fixture(scope="module")
def browser(open_browser):
    return open_browser()


class Page:
    """What a person sees of the page and does with it."""

    def __init__(self, browser, url=None):
        from selenium.webdriver import ActionChains, Keys
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser, self.keys, self._hands = browser, Keys, functools.partial(ActionChains, browser, duration=20)
        self._wait = WebDriverWait(browser, PATIENCE).until
        if url:
            browser.get(url)
            self.until(self.is_idle)

    def until(self, true):
        return self._wait(lambda _: true())

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def shows(self, selector):
        return any(element.is_displayed() for element in self.all(selector))

    def is_idle(self):
        return self.one("body").get_attribute("aria-busy") == "false"

    def said(self):
        return self.one("#message").text

    def enter(self, name):
        self.one("#name").clear()
        self.one("#name").send_keys(name)
        self.one("#enter button").click()
        self.until(lambda: self.shows("#work") or self.said())

    def script(self, expression):
        """The value of an expression, in one step: elements that are read one by one may be replaced meanwhile."""
        return self.browser.execute_script(f"return {expression}")

    def texts(self):
        return self.script("[...document.querySelectorAll('.card > .text')].map(e => e.textContent)")

    def press(self, *pressed, shift=False):
        hands = self._hands()
        hands = hands.key_down(self.keys.SHIFT) if shift else hands
        hands = hands.send_keys(*pressed)
        (hands.key_up(self.keys.SHIFT) if shift else hands).perform()

    def drag(self, letter, rank):
        """Drags the letter of a card into the column of a rank."""
        self._hands().drag_and_drop(
            self.all(".card .letter")["ABCDEFGHI".index(letter)], self.one(f'.lane[data-rank="{rank}"] .title')
        ).perform()

    def lanes(self):
        """The letters in each column, from "no rank yet" on."""
        return self.script("[...document.querySelectorAll('.lane .held')].map(e => e.textContent)")

    def pressed(self, kind):
        return self.script(
            f"[...document.querySelectorAll('button[data-{kind}][aria-pressed=true]')].map(e => e.textContent)"
        )

    def save(self, press=None):
        before = self.one("#count").text
        press() if press else self.one("#save").click()
        self.until(lambda: self.one("#count").text != before or self.said())
        self.until(self.is_idle)


def test_a_person_ranks_by_dragging_and_by_keys_ties_rates_takes_back_and_goes_on(browser, tmp_path):
    out, source = tmp_path / "labels.jsonl", write(tmp_path / "c.jsonl", ROWS)
    completions = {row["completions"][0]: row for row in ROWS}
    with serving(desk_of(out, source)) as site:
        page, port = Page(browser, site.url), site.port
        assert page.browser.current_url == f"http://{site.host}/"  # the key does not stay in the address
        page.enter("ann")

        # Four completions, by dragging: the third is best, two share the next column, the last stands two below.
        while len(page.all(".card")) != 4:  # the order of items is the seed's; judge what comes before by keys
            judge_by_keys(page, [1] * len(page.all(".card")))
        shown = page.texts()
        assert browser.title == "Judge completions" and "<script>" in "".join(shown) and not page.all(".card img")
        assert any("red U+001B[31m and U+202E turned" in text for text in shown)
        assert "secret" not in browser.page_source
        sides = page.script("[...document.querySelectorAll('.card > .text')].map(e => getComputedStyle(e).direction)")
        assert [side == "rtl" for side in sides] == ["مرحبا" in text for text in shown]
        assert page.lanes() == ["ABCD", "", "", "", ""] and not page.one("#save").is_enabled()
        for letter, rank in zip("CABD", (1, 2, 2, 4)):
            page.drag(letter, rank)
        assert page.lanes() == ["", "C", "AB", "", "D"]
        page.drag("A", 0)
        assert page.lanes() == ["A", "C", "B", "", "D"] and "rank A" in page.one("#missing").text
        page.drag("A", 2)
        for number, card in enumerate(page.all(".card")):
            card.find_element("css selector", f'button[data-rating="{7 - number}"]').click()
        page.all('.card:nth-child(4) input[name="violent"]')[0].click()
        assert page.one("#missing").text == "Complete" and page.pressed("rating") == ["7", "6", "5", "4"]
        page.save()
        row = read(out)[-1]
        by_text = dict(zip(row["completions"], zip(row["ranks"], row["ratings"], row["flags"])))
        order = row["order"]
        assert [by_text[ROWS[0]["completions"][place]] for place in order] == [
            (2, 7, []), (2, 6, []), (1, 5, []), (3, 4, ["violent"])
        ]  # fmt: skip

        # Taken back: the answers are on the page again, and one of them is changed by keys.
        page.press("u")
        page.until(lambda: len(page.texts()) == 4 and page.lanes() == ["", "C", "AB", "D", ""])
        assert [r["labeler"] for r in read(out)] == ["ann"] * (len(read(out))) and row not in read(out)
        assert page.pressed("rating") == ["7", "6", "5", "4"] and page.one('input[name="violent"]:checked')
        page.press("d", page.keys.ARROW_UP)
        page.press("d")
        page.press("2", shift=True)
        assert page.lanes() == ["", "C", "ABD", "", ""]
        page.save(lambda: page.press(page.keys.ENTER))
        assert read(out)[-1]["ranks"].count(2) == 3 and 2 in read(out)[-1]["ratings"]

        # Loaded again half way: nothing is recorded, and the same item comes again.
        done = len(read(out))
        if page.shows("#work"):
            page.press("1")
            shown = page.texts()
            browser.refresh()
            page.until(lambda: page.shows("#work") and page.texts() == shown)
            assert not page.pressed("rank") and len(read(out)) == done

        # Somebody else under this name, at once.
        bob = Client(site.host)
        with pytest.raises(AssertionError, match="ann is at work in another window"):
            bob.post("enter", name="ann")

    # The program is started again: the page goes on where it was.
    with serving(desk_of(out, source), port=port):
        while page.shows("#work"):
            judge_by_keys(page, list(range(len(page.all(".card")), 0, -1)))
            if "started again" in page.said():
                page.save(lambda: page.press(page.keys.ENTER))
        page.until(lambda: page.shows("#end"))
        assert "3 judgments of 3 items" in page.one("#end-text").text
    rows = read(out)
    assert len(rows) == 3 and all(
        row["completions"] == completions[row["completions"][0]]["completions"] for row in rows
    )
    errors = [entry for entry in browser.get_log("browser") if "refused" not in entry["message"].lower()]
    assert not [entry for entry in errors if "Security Policy" in entry["message"]]


def test_a_page_that_is_left_frees_its_name_and_its_item(browser, tmp_path):
    out, source = tmp_path / "labels.jsonl", write(tmp_path / "c.jsonl", ROWS[1:2])
    with serving(desk_of(out, source, shared=0.0), labeler="cho") as site:
        page = Page(browser, site.url)  # enters by itself
        page.until(lambda: page.shows("#work") and page.one("#who").text == "cho")
        sizes = page.script(
            "[...document.querySelectorAll('.card > .text')].map(e => [e.clientHeight, e.scrollHeight])"
        )
        assert max(scrolled / height for height, scrolled in sizes) > 5 and max(height for height, _ in sizes) < 800
        assert sum("stopped here" in text for text in page.texts()) == 1
        bob = Client(site.host, "bob")
        assert bob.next() is None
        browser.get("about:blank")
        page.until(bob.next)
        assert not out.exists()


def test_a_person_writes_demonstrations_and_takes_one_back(browser, tmp_path):
    out = tmp_path / "demonstrations.jsonl"
    prompts = write(tmp_path / "p.jsonl", [{"prompt": f"question {n}"} for n in range(2)])
    with serving(desk_of(out, prompts, prompts=True), task="demonstrations", labeler="dan") as site:
        page = Page(browser, site.url)
        page.until(lambda: page.shows("#demonstration"))
        assert not page.shows("#lanes") and not page.one("#save").is_enabled()
        page.one("#demonstration").send_keys("답은 ", page.keys.ENTER, "مرحبا u 1?")
        page.save(lambda: page.one("#demonstration").send_keys(page.keys.CONTROL, page.keys.ENTER))
        assert [row["completion"] for row in read(out)] == ["답은 \nمرحبا u 1?"]
        page.save(lambda: page.one("#undo").click())
        assert read(out) == [] and page.one("#demonstration").get_property("value") == "답은 \nمرحبا u 1?"


def judge_by_keys(page, ranks):
    """Gives the completions in the order of the page these ranks, each with a rating of 4, and saves."""
    for place, rank in enumerate(ranks):
        page.press("abcdefghi"[place], str(rank), "abcdefghi"[place])
        page.press("4", shift=True)
    page.save(lambda: page.press(page.keys.ENTER))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_what_was_labeled_in_the_browser_trains_a_reward_model(request, tmp_path):
    """By requests where there is no browser."""
    rows = [
        {"prompt": f"item {n}", "completions": ["a", "b b", "c c c"], "split": "valid" if n < 2 else "train"}
        for n in range(6)
    ]
    out = tmp_path / "labels.jsonl"
    with serving(desk_of(out, write(tmp_path / "c.jsonl", rows), asked=("ranks",)), labeler="ann") as site:
        try:
            page = Page(request.getfixturevalue("browser"), site.url)
        except pytest.skip.Exception:
            ann = Client(site.host, "ann")
            while item := ann.next():
                ann.judge(item, len)
        else:
            while page.shows("#work"):
                page.press(*(str(1 + sorted(map(len, page.texts())).index(len(text))) for text in page.texts()))
                page.save(lambda: page.press(page.keys.ENTER))
    assert [row["ranks"] for row in read(out)] == [[1, 2, 3]] * 6
    config = default_config()
    config.stages = ("reward_model",)
    config.prompt_length, config.completion_length = 16, 8
    config.tokenizer.vocab_size = 300
    config.model.update(
        num_layers=1, embed_dim=16, num_heads=2, max_length=24, dtype="float32", scan_layers=False, remat="none"
    )
    config.data.source = "files"
    config.data.files.update(
        rankings=str(out), splits="published", near_duplicates="ignore", valid_share=0.0, test_share=0.0
    )
    config.reward_model.update(init="", epochs=30.0, batch_size=4, learning_rate=1e-2)
    pipeline.run_stages(config, tmp_path / "run")
    found = read_json(tmp_path / "run" / "reward_model" / "evaluation.json")
    assert found["valid"]["pairs"] == 6 and found["valid"]["accuracy"]["value"] == 1.0
