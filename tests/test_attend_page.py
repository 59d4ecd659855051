"""The HTML page: its structure, by an HTML parser, and its working, by a browser without a network."""

import base64
import html.parser
import io
import json
import re
import shutil
import sys
import time

import numpy as np
import pytest

from attend_made import made

pytest.importorskip("bokeh")
from PIL import Image

from ats_core import plot
from ats_core.attend.page import write_page

EVIL = """</title><script>alert(1)</script><img src=x onerror="alert(2)">&amp;'"{{ 7 * 7 }}.svs"""


def gradient(height, width):
    y, x = np.mgrid[:height, :width]
    return shade((y + 0.5) / height, (x + 0.5) / width).astype(np.uint8)


def shade(y, x):
    """The gradient's colour at parts of its height and its width."""
    return np.stack([255 * y, 255 * x, 0 * x + 128], -1)


class Page(html.parser.HTMLParser):
    """The elements of a page with their attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.stack = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in ("meta", "img", "input", "link", "base"):
            self.stack.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        for element in self.stack:
            element[2].append(data)

    def all(self, tag):
        return [(attributes, "".join(text).strip()) for found, attributes, text in self.elements if found == tag]


def write(path, attended, **options):
    picture = gradient(300, 400)
    write_page(path, attended, picture, **options)
    text = path.read_text("utf-8")
    item = re.search(r"^ *const item = (.*)$", text, re.MULTILINE)[1]

    def refuse(constant):
        raise AssertionError(f"{constant} in JSON")

    return Page(text), json.loads(item, parse_constant=refuse)


def renderers(item):
    """Attributes of the glyphs of the figure by their renderers' names, and the columns of the patches."""
    attributes = item["doc"]["roots"][0]["attributes"]
    glyphs, columns = {}, {}
    for renderer in attributes["renderers"]:
        glyphs.setdefault(renderer["attributes"]["name"], renderer["attributes"]["glyph"]["attributes"])
        data = renderer["attributes"]["data_source"].get("attributes", {}).get("data", {"entries": []})
        columns |= {name: column for name, column in data["entries"] if len(column)}
    return glyphs, columns


def decode(uri):
    kind, data = uri.split(",")
    assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))


# ---- structure ----


def test_nothing_is_fetched(tmp_path):
    page, item = write(tmp_path / "index.html", made(scales=(1.0, 4.0)))
    for tag, attributes, _ in page.elements:
        assert tag not in ("link", "base", "iframe", "object", "embed")
        assert not {"src", "href", "srcset", "action", "background", "poster"} & attributes.keys()
    (style,) = (text for _, text in page.all("style"))
    assert "url(" not in style and "@import" not in style
    policy = {a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"}
    (rules,) = (dict(rule.strip().split(" ", 1) for rule in content.split(";")) for content in policy)
    assert rules.pop("default-src") == "'none'"
    assert rules == {"img-src": "data:", "style-src": "'unsafe-inline'", "script-src": "'unsafe-inline'"}
    assert "http" not in json.dumps(item)


def test_names_are_text(tmp_path):
    plain, _ = write(tmp_path / "plain.html", made(), classes=["a", "b"])
    page, _ = write(tmp_path / "evil.html", made(name=EVIL), classes=["<b>healthy</b>", EVIL])
    assert [text for _, text in page.all("title")] == [EVIL]
    assert [text for _, text in page.all("h1")] == [EVIL]
    assert [tag for tag, *_ in page.elements] == [tag for tag, *_ in plain.elements]
    cells = [text for _, text in page.all("td")]
    assert cells[:4] == [EVIL, "0.75", "<b>healthy</b>", "0.25"]


def test_the_prediction_is_shown_as_it_is(tmp_path):
    def rows(prediction, classes=None):
        page, _ = write(tmp_path / "index.html", made(prediction=prediction), classes=classes)
        cells = [text for _, text in page.all("td")][:-4]
        chosen = [text.split("\n")[0] for attributes, text in page.all("tr") if attributes.get("class") == "predicted"]
        bars = [attributes["style"] for attributes, _ in page.all("i") if "style" in attributes]
        return cells, chosen, bars

    assert rows((0.2, 0.8)) == (["output 1", "0.8", "output 0", "0.2"], ["output 1"], ["width: 80.0%", "width: 20.0%"])
    assert rows((3.0, -1.0), ["x", "y"]) == (["x", "3", "y", "-1"], ["x"], [])  # no shares of anything
    assert rows((0.3,)) == (["output", "0.3"], [], [])
    assert rows(0.3) == (["output", "0.3"], [], [])
    assert rows((0.3,), ["risk"]) == (["risk", "0.3"], [], [])
    assert rows((np.nan, 1.0))[1:] == ([], [])
    cells, chosen, _ = rows(np.arange(30.0))
    assert cells[:2] == ["output 29", "29"] and len(cells) == 20 and chosen == ["output 29"]
    with pytest.raises(ValueError, match=r"^classes: the model has 2 outputs, got 3 names$"):
        rows((0.2, 0.8), ["a", "b", "c"])


def test_pictures_are_where_they_belong(tmp_path):
    attended = made(scales=(1.0, 4.0))
    _, item = write(tmp_path / "index.html", attended)
    glyphs, columns = renderers(item)
    whole = {axis: glyphs["picture"][axis]["value"] for axis in "xywh"}
    assert whole == {"x": 0, "y": 0, "w": 4000, "h": 3000}
    heat = {axis: glyphs["heat"][axis]["value"] for axis in "xywh"}
    # The receptive field is 30 x 20 of the thumbnail's pixels, 10 of the image's each.
    assert heat == {"x": 100, "y": 150, "w": 4000 - 200, "h": 3000 - 300}
    urls = [column for name, column in columns.items() if name == "url"]
    assert urls
    order = np.argsort(attended.probabilities, kind="stable")  # the likeliest one is drawn last
    assert columns["rank"] == list(range(len(order), 0, -1))
    for i, left, top, right, bottom in zip(
        order, *(columns[f"{side}1"] for side in ("left", "top", "right", "bottom")), strict=True
    ):
        centre = attended.origins[i] + np.array(attended.patch_size) / 2
        np.testing.assert_allclose([(top + bottom) / 2, (left + right) / 2], centre, atol=0.5)
        assert (bottom - top, right - left) == (240, 320)
    for i, pictures in zip(order, zip(columns["picture0"], columns["picture1"], strict=True), strict=True):
        for s, uri in enumerate(pictures):
            np.testing.assert_array_equal(decode(uri), plot.draw_image(attended.patches[i, s], size=80))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_patches_of_any_kind_share_one_scale_of_values(tmp_path, channels, dtype):
    attended = made(channels=channels, dtype=dtype)
    dark = attended.probabilities.argmax()
    attended.patches[:] = attended.patches > 128  # so few values that PNG files are the smaller ones
    attended.patches[:] *= 200
    attended.patches[dark] = 100
    if dtype == "float32":
        attended.patches[dark, 0, 0, 0] = np.nan
    _, item = write(tmp_path / "index.html", attended)
    _, columns = renderers(item)
    picture = decode(columns["picture0"][-1])[2:]
    assert (picture == picture[0, 0]).all()
    assert picture[0, 0, 0] == (100 if dtype == "uint8" else 128)  # between the others' 0 and 200
    if channels != 2:  # whose mean has three values
        others = decode(columns["picture0"][0])
        assert set(np.unique(others)) == {0, 200 if dtype == "uint8" else 255}


def test_a_page_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    write_page(tmp_path / "index.html", made(), rng.integers(0, 256, (512, 512, 3), np.uint8))
    small = (tmp_path / "index.html").stat().st_size
    assert small < 1.27e6 + 0.6e6  # Bokeh's script without widgets, tables and WebGL; noise does not compress


def test_bad_arguments_are_named(tmp_path):
    path = tmp_path / "index.html"
    with pytest.raises(ValueError, match=r"^axes: .*slide.svs has zyx$"):
        write_page(path, made(axes="zyx"), gradient(3, 4))
    for picture in (gradient(3, 4)[..., :1], gradient(3, 4) / 255, gradient(3, 4)[0], gradient(3, 0)):
        with pytest.raises(ValueError, match=r"^picture: must be uint8 \(H, W, 3\)"):
            write_page(path, made(), picture)
    for shape in ((4097, 1, 3), (1, 4097, 3)):
        with pytest.raises(ValueError, match=r"^picture: "):
            write_page(path, made(), np.zeros(shape, np.uint8))
    assert not path.exists()


def test_without_bokeh_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "bokeh"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(ImportError, match=r"python -m pip install 'ats-core\[attend\]'"):
        write_page(tmp_path / "index.html", made(), gradient(3, 4))


# ---- in a browser ----

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # containers have little of it
    "--window-size=1400,900",
]

# Where a place of the image is on the screen, and what the figure shows.
HELPERS = """
window.view = () => Object.values(Bokeh.index)[0] ?? Bokeh.index.roots[0]
window.state = () => {
  const {x_range, y_range, inner_width, inner_height, renderers} = Bokeh.documents[0].get_model_by_name("figure")
  return {x: [x_range.start, x_range.end], y: [y_range.start, y_range.end], inner: [inner_width, inner_height],
          alpha: renderers.find((r) => r.name === "heat").glyph.global_alpha.value ?? null,
          shown: renderers.filter((r) => r.visible).map((r) => r.name)}
}
window.find = (selector, root = document) => {
  const found = root.querySelector(selector)
  if (found) return found
  for (const element of root.querySelectorAll("*")) {
    const inside = element.shadowRoot && window.find(selector, element.shadowRoot)
    if (inside) return inside
  }
  return null
}
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))  # given one, Selenium fetches none
    yield driver
    driver.quit()


class Opened:
    """The page in the browser."""

    def __init__(self, driver, path, attended):
        self.driver, self.path, self.attended = driver, path, attended
        driver.get_log("browser"), driver.get_log("performance")
        driver.get(path.as_uri())
        driver.execute_script(HELPERS)
        self.until(lambda: self.state()["y"][0] != attended.shape[0])  # where Bokeh put it, before it is fitted

    def until(self, condition, seconds=20):
        """The first result that is true."""
        end = time.monotonic() + seconds
        while not (result := condition()):
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.05)
        return result

    def state(self):
        return self.driver.execute_script("return window.state()")

    def at(self, y, x):
        """Pixels from the middle of the figure's element to a place of the image."""
        return self.driver.execute_script(
            """
            const [y, x] = arguments, {frame, el} = window.view(), box = el.getBoundingClientRect()
            const figure = document.getElementById("figure").getBoundingClientRect()
            return [box.left + frame.x_scale.compute(x) - figure.left - figure.width / 2,
                    box.top + frame.y_scale.compute(y) - figure.top - figure.height / 2].map(Math.round)
            """,
            float(y),
            float(x),
        )

    def element(self, selector):
        return self.driver.find_element("css selector", selector)

    def mouse(self, y, x):
        """The mouse, moved to a place of the image."""
        from selenium.webdriver.common.action_chains import ActionChains

        actions = ActionChains(self.driver, duration=50)
        return actions.move_to_element_with_offset(self.element("#figure"), *self.at(y, x))

    def colour(self, y, x):
        """Of the screen, RGB."""
        screen = np.asarray(Image.open(io.BytesIO(self.element("#figure").screenshot_as_png)).convert("RGB"))
        dx, dy = self.at(y, x)
        return screen[screen.shape[0] // 2 + dy, screen.shape[1] // 2 + dx].astype(int)

    def reset(self):
        self.element("#whole").click()
        return self.state()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    attended = made(name=EVIL, scales=(1.0, 4.0), patch_size=(200, 200), n=5)
    attended.origins[1] = attended.origins[0] + 60  # these two overlap
    path = tmp_path_factory.mktemp("page") / "index.html"
    write_page(path, attended, gradient(750, 1000), classes=["healthy", EVIL])
    return Opened(browser, path, attended)


@pytest.fixture
def page(opened):
    """At its beginning; whatever a test does, the browser has nothing to complain about."""
    opened.reset()
    yield opened
    messages = opened.driver.get_log("browser")
    assert [message for message in messages if message["level"] not in ("INFO", "DEBUG")] == []


def pixel_sizes(state):
    (x0, x1), (y0, y1), (width, height) = state["x"], state["y"], state["inner"]
    return (x1 - x0) / width, (y0 - y1) / height


def test_the_whole_image_is_seen_undistorted(page):
    state = page.state()
    assert state["x"][0] <= 0 and state["x"][1] >= 4000 and state["y"][1] <= 0 and state["y"][0] >= 3000
    np.testing.assert_allclose(*pixel_sizes(state))
    page.element("#opacity").send_keys("\ue011")  # home
    assert page.element("h1").text == " ".join(EVIL.split())
    for y, x in ((100, 100), (2800, 150), (150, 3900), (1500, 2020)):  # the gradient, y downwards
        expected = shade(y / 3000, x / 4000)
        page.until(lambda y=y, x=x, expected=expected: np.abs(page.colour(y, x) - expected).max() < 6)


def test_dragging_pans_by_as_much(page):
    before = page.state()
    pixel, _ = pixel_sizes(before)
    page.mouse(100, 100).click_and_hold().move_by_offset(60, 35).release().perform()
    after = page.until(lambda: page.state()["x"] != before["x"] and page.state())
    np.testing.assert_allclose(after["x"], np.array(before["x"]) - 60 * pixel)
    np.testing.assert_allclose(after["y"], np.array(before["y"]) - 35 * pixel)


def test_the_wheel_zooms_where_the_mouse_is(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    before = page.state()
    y, x = 800, 3000
    place = page.at(y, x)
    origin = ScrollOrigin.from_element(page.element("#figure"), *place)
    ActionChains(page.driver).scroll_from_origin(origin, 0, -300).perform()
    after = page.until(lambda: page.state()["x"] != before["x"] and page.state())
    assert pixel_sizes(after)[0] < 0.8 * pixel_sizes(before)[0]
    np.testing.assert_allclose(*pixel_sizes(after))
    np.testing.assert_allclose(page.at(y, x), place, atol=1)
    # Far in and out, where the labels of the axes have other lengths.
    for notches in (20, -60, 20):
        before = page.state()
        for _ in range(abs(notches) // 10):
            ActionChains(page.driver).scroll_from_origin(origin, 0, -100 * notches).perform()
        after = page.until(lambda before=before: page.state()["x"] != before["x"] and page.state())
        np.testing.assert_allclose(*pixel_sizes(after))


def test_the_slider_is_the_opacity_of_the_heat(page):
    y, x = page.attended.shape[0] - 200, page.attended.shape[1] - 150  # within the last cell, the likeliest
    slider = page.element("#opacity")
    seen = {}
    for key, alpha in (("\ue011", 0), ("\ue010", 1)):  # home, end
        slider.send_keys(key)
        page.until(lambda alpha=alpha: page.state()["alpha"] == alpha)
        assert page.element("#percent").text == f"{100 * alpha} %"
        expected = shade(y / 3000, x / 4000) if alpha == 0 else plot.colours_of(plot.HEAT, np.array([0.85]))[0]
        page.until(lambda expected=expected: np.abs(page.colour(y, x) - expected).max() < 12)
        seen[alpha] = page.colour(y, x)
        # No cell covers the margin, 150 pixels high.
        assert np.abs(page.colour(2950, x) - shade(2950 / 3000, x / 4000)).max() < 12
    assert np.abs(seen[0] - seen[1]).max() > 50


def test_a_patch_under_the_mouse_is_shown(page):
    attended = page.attended
    likelier = int(attended.probabilities[1] > attended.probabilities[0])
    for i, place in ((0, 30), (1, 170), (2, 100), (3, 100), (4, 100), (likelier, 130 - 60 * likelier)):
        page.mouse(*(attended.origins[i] + place)).perform()
        words = [
            f"patch {attended.ranks[i]}",
            f"probability {attended.probabilities[i]:.3g}",
            f"weight {attended.weights[i]:.3g}",
            f"at x {attended.origins[i][1]:,}, y {attended.origins[i][0]:,}",
        ]
        read = "const found = window.find('.ats-tooltip'); return found && found.innerText.trim().split(/\\n+/)"
        page.until(lambda read=read, words=words: page.driver.execute_script(read) == words)
        uris = page.driver.execute_script(
            """const images = [...window.find(".ats-tooltip").querySelectorAll("img")]
            return images.filter((image) => image.naturalWidth).map((image) => image.src)"""
        )
        assert len(uris) == len(attended.scales)
        for s, uri in enumerate(uris):
            np.testing.assert_array_equal(decode(uri), plot.draw_image(attended.patches[i, s], size=192))
    page.mouse(20, 20).perform()
    page.until(lambda: page.driver.execute_script("return !window.find('.ats-tooltip')?.checkVisibility()"))


def test_a_click_shows_a_patch(page):
    attended = page.attended
    before = page.state()
    first, *_, last = page.driver.find_elements("css selector", "#sheet button")
    page.element("#opacity").send_keys("\ue011")
    first.click()
    after = page.until(lambda: page.state()["x"] != before["x"] and page.state())
    likeliest, other = attended.probabilities.argmax(), attended.probabilities.argmin()
    np.testing.assert_allclose([np.mean(after["y"]), np.mean(after["x"])], attended.origins[likeliest] + 100)
    np.testing.assert_allclose(*pixel_sizes(after))
    assert [tile.get_attribute("class") for tile in (first, last)] == ["chosen", ""]
    for y, x in ((25, 25), (75, 125), (175, 25)):  # its own pixels, not the picture's
        expected = attended.patches[likeliest, 0, y, x].astype(int)
        place = attended.origins[likeliest] + (y, x)
        page.until(lambda place=place, expected=expected: np.abs(page.colour(*place) - expected).max() < 6)

    page.reset()
    page.mouse(*(attended.origins[other] + (30 if other == 0 else 170))).click().perform()
    page.until(lambda: [tile.get_attribute("class") for tile in (first, last)] == ["", "chosen"])


def test_patches_can_be_hidden(page):
    box = page.element("#boxes")
    assert {"box", "patch"} < set(page.state()["shown"])
    box.click()
    assert set(page.state()["shown"]) == {"picture", "heat"}
    box.click()
    assert {"box", "patch"} < set(page.state()["shown"])


def test_small_boxes_become_dots(page):
    page.driver.execute_script(
        """const {x_range, y_range} = Bokeh.documents[0].get_model_by_name("figure")
        x_range.setv({start: 0, end: 100000}), y_range.setv({start: 75000, end: 0})"""
    )
    assert {"picture", "heat", "dot"} == set(page.state()["shown"])


def test_a_resized_window_keeps_the_scale(page):
    before = page.state()
    page.driver.set_window_size(1100, 800)
    after = page.until(lambda: page.state()["inner"] != before["inner"] and page.state())
    try:
        page.until(lambda: np.allclose(*pixel_sizes(page.state())))
        after = page.state()
        np.testing.assert_allclose(pixel_sizes(after), pixel_sizes(before), rtol=1e-6)
        np.testing.assert_allclose(np.mean(after["x"]), np.mean(before["x"]))
    finally:
        page.driver.set_window_size(1400, 900)
        page.until(lambda: page.state()["inner"] == before["inner"])


def test_the_network_is_not_used(page):
    log = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    requests = [entry["params"] for entry in log if entry["method"] == "Network.requestWillBeSent"]
    # The browser's own first page, at chrome:, may still have been loading.
    urls = [request["request"]["url"] for request in requests if request["documentURL"] == page.path.as_uri()]
    assert page.path.as_uri() in urls
    assert [url for url in urls if url != page.path.as_uri() and not url.startswith("data:")] == []
