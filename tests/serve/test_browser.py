"""The page in Debian's Chromium: what a person sees, clicks and types."""

import http.server
import shutil
import threading

import pytest
from fake_upstream import ANSWERS
from running import config_of, running

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install '.[test]'"
)
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]
WARM = ANSWERS[2]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 740}
_LEAST_CONTRAST = 4.5  # of text with its background, WCAG 2.2 AA

CONTRASTS = """() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return {rgb: [r, g, b], a};
  };
  const probe = document.createElement("div");
  probe.style.background = "Canvas";
  document.body.append(probe);
  const canvas = parse(getComputedStyle(probe).backgroundColor).rgb;
  probe.remove();
  const back = (node) => {
    if (node === null) return canvas;
    const {rgb, a} = parse(getComputedStyle(node).backgroundColor);
    return back(node.parentElement).map((below, n) => a * rgb[n] + (1 - a) * below);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((x) => x / 255)
      .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = {};
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    if (!own || !node.checkVisibility() || node.tagName === "SCRIPT") continue;
    const pair = [light(parse(getComputedStyle(node).color).rgb), light(back(node))];
    found[node.textContent] = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  }
  return found;
}"""

FOREIGN = """async (url) => {
  const json = {"content-type": "application/json"};
  const attempts = {
    read: () => fetch(url + "/v1/user?id=victim").then((r) => r.text()),
    page: () => fetch(url + "/").then((r) => r.text()),
    write: () => fetch(url + "/v1/user?id=victim", {method: "DELETE", headers: json})
      .then((r) => r.text()),
    blind: () => fetch(url + "/v1/chat/completions", {method: "POST", mode: "no-cors",
      headers: {"content-type": "text/plain"},
      body: JSON.stringify({model: "auto", messages: [{role: "user", content: "Hm?"}],
                            user: "victim"})}).then((r) => r.text()),
    frame: () => new Promise((done) => {
      const frame = document.createElement("iframe");
      frame.onload = () => {
        try { done(frame.contentDocument.body.textContent); } catch { done(""); }
      };
      frame.src = url + "/";
      document.body.append(frame);
    }),
  };
  const got = {};
  for (const [name, attempt] of Object.entries(attempts)) {
    got[name] = await attempt().catch(() => "");
  }
  return got;
}"""


@pytest.fixture(scope="module")
def browser():
    with (
        playwright.sync_playwright() as driver,
        driver.chromium.launch(executable_path=CHROMIUM) as browser,
    ):
        yield browser


@pytest.fixture
def open_page(browser, served, upstream):
    contexts, failures = [], []

    def open_one(url=None, viewport=DESKTOP, **settings):
        context = browser.new_context(viewport=viewport, **settings)
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(url or served.url)
        idle(page)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert failures == []


def idle(page):
    """Wait until the page works on nothing."""
    page.wait_for_selector("#send[aria-disabled=false]")


def introduce(page, user):
    page.fill("#name", user)
    page.press("#name", "Tab")
    idle(page)


def ask(page, text="How was your day?"):
    page.fill("#text", text)
    page.click("#send")
    idle(page)


def taste_of(page):
    """The sentences and the bars."""
    bars = page.eval_on_selector_all("#taste .bar span", "bars => bars.map((x) => x.style.left)")
    return page.locator("#taste li").all_inner_texts(), bars


def test_from_the_first_visit_to_a_personal_answer_in_three_clicks(open_page, client, user):
    page = open_page()
    introduce(page, user)
    before = taste_of(page)
    assert len(before[0]) == 5
    assert "You have said nothing yet" in page.inner_text("#based")
    ask(page)  # the first click
    page.click(f".pair .turn:has-text('{WARM}') button")
    idle(page)
    words, bars = taste_of(page)
    assert words != before[0]
    assert bars != before[1]
    assert "what you said once" in page.inner_text("#based")
    assert "Your taste moved" in page.inner_text("#said")
    ask(page, "And yours?")
    answer = page.locator(".turn").last
    assert "An answer chosen for you" in answer.inner_text()
    assert WARM in answer.inner_text()
    assert client.get(f"/v1/user?id={user}").json()["feedback_used"] == 1


def test_thumbs_move_the_taste_and_can_be_turned(open_page, client, user):
    page = open_page()
    introduce(page, user)
    page.uncheck("#compare")
    ask(page)
    page.click("text=Good answer")
    idle(page)
    good = taste_of(page)
    assert page.get_attribute("text=Good answer", "aria-pressed") == "true"
    page.click("text=Bad answer")
    idle(page)
    assert taste_of(page) != good
    assert page.get_attribute("text=Good answer", "aria-pressed") == "false"
    assert client.get(f"/v1/user?id={user}").json()["feedback_used"] == 1


def test_forgetting_asks_and_then_empties_the_taste(open_page, client, user):
    page = open_page()
    introduce(page, user)
    before = taste_of(page)
    ask(page)
    page.click(".pair button >> nth=1")
    idle(page)
    assert taste_of(page) != before
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("#forget")
    assert client.get(f"/v1/user?id={user}").json()["rows"] == 2
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    page.wait_for_selector("#said:has-text('deleted')")
    idle(page)
    assert page.inner_text("#said").startswith("2 rows were deleted.")
    assert taste_of(page) == before
    assert page.locator(".turn").count() == 0
    assert client.get(f"/v1/user?id={user}").json()["rows"] == 0


def test_the_keyboard_suffices(open_page, user):
    page = open_page()
    page.focus("#name")
    page.keyboard.press("Control+A")
    page.keyboard.type(user)
    page.keyboard.press("Shift+Tab")
    idle(page)
    for _ in range(2):
        page.keyboard.press("Shift+Tab")
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    assert page.input_value("#text") == "One line\nand another"
    page.keyboard.press("Enter")
    page.wait_for_selector(".pair")
    idle(page)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate("document.activeElement.textContent") == "I prefer answer A"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    idle(page)
    assert page.locator(".pair").count() == 0
    assert page.evaluate("document.activeElement.id") == "text"


def test_without_a_choice_the_chat_goes_on(open_page, upstream, user):
    page = open_page()
    introduce(page, user)
    ask(page)
    shown = page.inner_text(".pair .words >> nth=0")
    ask(page, "And yours?")
    roles = [turn["role"] for turn in upstream.requests[-1].body["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert upstream.requests[-1].body["messages"][1]["content"] == shown
    assert page.locator(".pair").count() == 0


def test_comparisons_that_do_not_pay_become_rarer(open_page, user, monkeypatch):
    page = open_page()
    introduce(page, user)
    compared = []
    page.on("request", lambda request: compared.append(request.url.endswith("/v1/compare")))
    for number in range(9):
        monkeypatch.setattr("jaxalign.serve.comparing.LEAST_NATS", 0.0 if number > 7 else 99.0)
        ask(page, f"Question {number}")
    # The first, the fourth and the ninth message; the last comparison pays.
    assert sum(compared) == 3
    assert page.locator(".pair").count() == 1


def test_another_name_begins_another_conversation(open_page, upstream, user):
    page = open_page()
    introduce(page, user)
    ask(page, "A secret")
    introduce(page, user + "-2")
    assert page.locator(".turn").count() == 0
    ask(page, "Hello")
    assert "secret" not in str(upstream.requests[-1].body)


def test_the_name_is_kept_at_a_reload(open_page, user):
    page = open_page()
    introduce(page, user)
    page.reload()
    idle(page)
    assert page.input_value("#name") == user


def test_failures_are_shown_and_the_message_is_kept(open_page, upstream, user):
    page = open_page()
    introduce(page, user)
    upstream.mode = "fail"
    ask(page, "Are you well?")
    assert page.inner_text("#said") == "The engine failed with status 500."
    assert page.get_attribute("#said", "class") == "note wrong"
    page.route("**/v1/**", lambda route: route.abort())
    page.click("#send")
    idle(page)
    assert "cannot be reached" in page.inner_text("#said")
    page.unroute("**/v1/**")
    upstream.mode = "well"
    assert page.input_value("#text") == "Are you well?"
    page.click("#send")
    page.wait_for_selector(".pair")
    idle(page)
    assert page.inner_text("#said") == ""


def test_where_nothing_is_stored_the_page_only_chats(open_page, upstream_server, tmp_path, user):
    with running(config_of(tmp_path, upstream_server, store="none")) as service:
        page = open_page(service.url)
        introduce(page, user)
        ask(page)
        assert page.inner_text("#said") == ""
        assert page.locator(".turn").count() == 2
        assert page.locator("text=Good answer").count() == 0
        assert not page.is_visible("#compare")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_all_can_be_read_and_nothing_overflows(open_page, upstream, user, viewport, scheme):
    page = open_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    introduce(page, "name" + "-long" * 10 + user[-3:])
    ask(page, "Donaudampfschifffahrtsgesellschaft" * 9 + " and more words" * 50)
    contrasts = page.evaluate(CONTRASTS)
    ask(page)
    page.click("text=Good answer")
    idle(page)
    upstream.mode = "fail"
    ask(page, "Again?")
    contrasts |= page.evaluate(CONTRASTS)
    assert len(contrasts) > 15
    assert {text: one for text, one in contrasts.items() if one < _LEAST_CONTRAST} == {}
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]


@pytest.fixture(scope="module")
def foreign_port():
    """A server of another page, whose port makes it another origin."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>other</title><body></body>")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_origin_gets_nothing(browser, served, client, foreign_port, host):
    chat = {"model": "auto", "messages": [{"role": "user", "content": "Hm?"}], "user": "victim"}
    client.post("/v1/chat/completions", json=chat)
    rows = client.get("/v1/user?id=victim").json()["rows"]
    assert rows > 0
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"http://{host}:{foreign_port}/")
        got = page.evaluate(FOREIGN, served.url)
    assert got == {"read": "", "page": "", "write": "", "blind": "", "frame": ""}
    assert client.get("/v1/user?id=victim").json()["rows"] == rows
