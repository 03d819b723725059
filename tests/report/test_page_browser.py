"""The page in a real headless Chromium: curves, legend, slider, filters, keyboard, print.

Needs the package `playwright` (its own browsers are not used) and a system Chromium.
"""

import shutil
import time
from collections.abc import Iterator

import pytest
from made_up_runs import BANDS, STANDARD, write_runs
from made_up_traces import LABELS, write_trace

from mda.report.compare import compare
from mda.schema import ReportConfig, StudyConfig

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser test needs: pip install playwright"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="the browser test needs: apt-get install chromium"
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
N = 600  # highest and lowest: 1,200 samples


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    write_runs(root / "runs", range(3), (*STANDARD, *BANDS))
    trace = write_trace(root / "trace", n=N)
    settings = ReportConfig(resamples=99, dpi=40)
    compare([root / "runs"], root / "report", StudyConfig(), settings, [trace])
    return root / "report" / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    with playwright.sync_playwright() as driver:
        profile = tmp_path_factory.mktemp("profile")
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=FLAGS,
            viewport={"width": 1280, "height": 900}, offline=True,
        )  # fmt: skip
        yield context
        context.close()


@pytest.fixture(scope="module")
def page(browser, report) -> Iterator:
    """The page, opened once from its file; fails if it ever asked for or complained about anything.

    Tests set what they look at and leave the rest as they found it.
    """
    opened = browser.new_page()
    opened.set_default_timeout(120_000)
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(report.as_uri())
    opened.wait_for_selector("#plot-dose .main-svg")
    yield opened
    opened.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [report.as_uri()]


def until(condition) -> None:
    """Wait in Python: the page's policy forbids the strings that a browser would evaluate."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited 60 s in vain"
        time.sleep(0.05)


def curves(page) -> list[str]:
    """Names of the curves that are drawn now."""
    return page.evaluate(
        "document.getElementById('plot-curves').data"
        ".filter((t) => t.visible === true && t.name).map((t) => t.name)"
    )


def matrix(page) -> list:
    return page.evaluate("document.getElementById('plot-heads').data[0].z")


def count(page) -> str:
    return page.inner_text("#sample-count")


def test_all_plots_are_drawn(page):
    for name in ("curves", "effects", "heads", "icl", "dose"):
        assert page.locator(f"#plot-{name} .main-svg").count() > 0
    drawn = page.locator("#plot-curves .scatterlayer .trace .lines path").count()
    assert drawn >= len(STANDARD)
    assert page.locator("#plot-heads .heatmaplayer image").count() == 1
    assert len(curves(page)) == len(STANDARD)  # score bands are hidden at first


def test_the_legend_and_the_boxes_are_one_state(page):
    name = "remove mask ekfac top 10 % (n = 3)"
    box = page.get_by_label("remove mask ekfac top 10 %", exact=True)
    assert name in curves(page)
    entry = page.locator("#plot-curves .legend .traces").filter(has_text=name)
    entry.locator(".legendtoggle").click()
    until(lambda: name not in curves(page))
    assert not box.is_checked()
    box.check()
    assert name in curves(page)
    page.click("#arms-none")
    assert curves(page) == []
    page.click("#arms-all")
    assert len(curves(page)) == len(STANDARD) + len(BANDS)
    for name in page.locator("#arm-boxes label").filter(has_text=" band ").all():
        name.locator("input").uncheck()
    assert len(curves(page)) == len(STANDARD)


def test_another_curve_can_be_chosen(page):
    page.select_option("#curve-choice", "icl_score")
    title = page.locator("#plot-curves .ytitle").text_content()
    assert "in-context-learning" in title


def test_the_forest_follows_its_metric(page):
    means = "document.getElementById('plot-effects').data[0].x"
    before = page.evaluate(means)
    page.select_option("#effect-metric", "icl_score")
    assert page.evaluate(means) != before
    names = page.locator("#plot-effects .ytick").all_text_contents()
    assert len(names) == len(STANDARD) - 1


def test_the_slider_moves_through_training(page):
    slider = page.locator("#head-step")
    page.select_option("#head-view", "score")
    slider.focus()
    page.keyboard.press("End")
    assert page.inner_text("#head-step-text") == "step 3,000"
    late = matrix(page)
    page.keyboard.press("Home")
    assert page.inner_text("#head-step-text") == "step 1,000"
    early = matrix(page)
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#head-step-text") == "step 1,100"
    assert slider.get_attribute("aria-valuetext") == "step 1100"
    assert max(map(max, late)) > 3 * max(map(max, early))


def test_heads_can_be_compared_with_control(page):
    page.select_option("#head-arm", label="remove mask ekfac top 10 %")
    page.select_option("#head-view", "difference")
    page.locator("#head-step").fill("20")
    assert min(map(min, matrix(page))) < -0.02
    page.select_option("#head-arm", label="control")
    assert all(value == 0 for row in matrix(page) for value in row)


def test_play_runs_to_the_end(page):
    page.locator("#head-step").fill("17")
    page.click("#head-play")
    until(lambda: page.input_value("#head-step") == "20")
    until(lambda: page.inner_text("#head-play") == "Play")


def test_samples_are_rendered_a_page_at_a_time(page):
    assert count(page) == "1,200 of 1,200 samples match; 20 shown."
    assert page.locator(".sample").count() == 20
    page.click("#sample-more")
    assert page.locator(".sample").count() == 40


def test_filters_filter(page):
    for label in LABELS[1:]:
        page.get_by_label(label, exact=True).uncheck()
    assert count(page).startswith("300 of 1,200")
    assert all("code" in text for text in page.locator(".sample h3").all_text_contents())
    page.select_option("#sample-group", label=f"The {N} lowest")
    assert count(page).startswith("150 of 1,200")
    page.fill("#sample-text", "no such text")
    until(lambda: count(page).startswith("0 of"))
    assert page.locator(".sample").count() == 0
    assert page.locator("#sample-more").is_hidden()
    page.fill("#sample-text", "SELF")
    until(lambda: not count(page).startswith("0 of"))
    page.fill("#sample-text", "")
    page.select_option("#sample-group", "")
    for label in LABELS:
        page.get_by_label(label, exact=True).check()
    until(lambda: count(page).startswith("1,200 of"))


def test_samples_can_be_ordered_by_step(page):
    page.select_option("#sample-order", "step")
    facts = page.locator(".sample .quiet").all_text_contents()
    steps = [int(text.split("step ")[1].split()[0].rstrip(",")) for text in facts]
    assert steps == sorted(steps) and steps[0] == 1000
    page.select_option("#sample-order", "rank")


def test_tokens_are_shown_as_they_are_and_shaded(page):
    sample = page.locator(".sample").first
    assert "</script>" in page.locator("#sample-list").text_content()
    assert "&amp;" in page.locator("#sample-list").text_content()
    shades = sample.locator("pre span").evaluate_all("all => all.map((s) => s.style.background)")
    assert any("213, 94, 0" in s for s in shades) and any("0, 114, 178" in s for s in shades)
    strongest = sample.locator("pre span.strong").first
    assert abs(float(strongest.get_attribute("title"))) > 0


def test_of_1200_samples_twenty_are_elements_at_a_time(page):
    page.select_option("#sample-order", "loss")
    assert page.locator(".sample").count() == 20
    page.select_option("#sample-order", "rank")


def test_everything_can_be_reached_with_the_keyboard(page):
    wanted = {
        "curve-choice",
        "effect-metric",
        "head-arm",
        "head-step",
        "sample-text",
        "sample-more",
    }
    seen = set()
    page.locator("body").focus()
    for _ in range(250):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id"))
        if wanted <= seen:
            break
    assert wanted <= seen
    box = page.locator("#arm-boxes input").first
    box.focus()
    page.keyboard.press("Space")
    assert not box.is_checked()
    page.keyboard.press("Space")
    assert box.is_checked()


def test_links_lead_to_their_sections(page):
    for name in ("recompute", "samples", "verdicts"):
        page.click(f"nav a[href='#{name}']")
        top = f"document.getElementById('{name}').getBoundingClientRect().top"
        until(lambda top=top: -50 < page.evaluate(top) < 850)


def test_every_control_has_a_name(page):
    nameless = page.evaluate(
        "[...document.querySelectorAll('select, input, button')].filter((e) => "
        "!(e.tagName === 'BUTTON' && e.textContent.trim()) && !(e.labels && e.labels.length) "
        "&& !e.getAttribute('aria-label')).map((e) => e.outerHTML.slice(0, 120))"
    )
    assert nameless == []


def test_it_prints(page):
    paper = page.pdf()
    assert paper.startswith(b"%PDF") and len(paper) > 50_000
    page.emulate_media(media="print")
    assert page.locator("#curve-choice").is_hidden()
    assert page.locator("#plot-curves").is_visible()
    page.emulate_media(media="screen")
