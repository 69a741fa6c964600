"""The page in a real browser: the form of each recipe gives the answer that Python gives."""

import json
import re
import subprocess
import sys
import wave
from base64 import b64decode
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.data.images.read import encode_png
from anyformer.recipe_loading import list_recipes
from anyformer.trained_model import Model
from tests.browser.conftest import RECORD_FETCH

pytestmark = pytest.mark.browser
TEXTS = ("language", "mlp", "recall")
TALKS = ("chat", "preference", "grpo")  # the form of `language` with a chat template, which has tests of its own
FILES = ("speech", "vision", "contrastive")
DONE = "() => !document.body.classList.contains('busy') && !document.querySelector('.answer .empty')"


def open_model(page: Any, name: str, tab: int = 0) -> None:
    page.goto(f"/#{name}")
    page.locator(f"h1:text-is('{name}')").wait_for()
    if tab:
        page.get_by_role("tab").nth(tab).click()


def run(page: Any, act: Any = None) -> dict[str, Any]:
    """Submit the form, or do something else that does; wait for the answer. Returns what was sent, but for the name of
    the model and files."""
    page.evaluate("() => { window.sent = null; }")
    (act or page.locator("form.card button.primary").click)()
    page.wait_for_function("() => window.sent")
    page.wait_for_function(DONE)
    assert page.get_by_role("alert").count() == 0, page.get_by_role("alert").inner_text()
    return {name: value for name, value in json.loads(page.evaluate("window.sent")).items() if name != "model"}


def read_answer(page: Any) -> dict[str, Any]:
    text = page.locator("details.raw pre:not(:empty)")
    if not text.is_visible():  # what has no drawing is shown so from the start
        page.get_by_text("As JSON").click()
    text.wait_for()
    return json.loads(text.inner_text())


def write_image(path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 1)).astype(np.uint8)
    path.write_bytes(b64decode(encode_png(pixels)))
    return path


def write_sound(path: Path) -> Path:
    samples = 8000 * np.sin(np.arange(12_000) / 5)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16_000)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


SEEN = {  # what a person reads of a result
    "classify": lambda result: [result["label"]],
    "music": lambda result: [result["text"].strip()],
    "masked": lambda result: [mask["token"] for mask in result["masks"][0] if mask["token"].strip()],
    "tagging": lambda result: [word["word"] for word in result["words"]],
    "control": lambda result: ["reached of 18", "return so far"],
    "forecast": lambda result: [result["series"], "median"],
    "multimodal": lambda result: [result["state"]["label"], "load"],
    "generalist": lambda result: [str(result["action"])],
    "spans": lambda result: [result["text"].strip()],
    "diffusion": lambda result: [result["text"].strip(), f"read it {result['passes']} times"],
    "mask_predict": lambda result: [result["text"].strip()],
    "text2image": lambda result: [result["input"]],
    "tts": lambda result: [result["input"], "speech.wav"],
    "msa": lambda result: [result["text"]],
    "translation": lambda result: [result["text"], "Alignment"],
    "rnnsearch": lambda result: [result["text"], "Alignment"],
    "seq2seq": lambda result: [result["text"]],
}


@pytest.mark.parametrize("name", sorted(set(list_recipes()) - {*TEXTS, *TALKS, *FILES}))
def test_a_form_answers_as_python(page: Any, models: dict[str, Model], name: str):
    open_model(page, name)
    if name == "music":  # its noise would not end by itself
        page.locator("details.settings summary").click()
        page.get_by_label("tokens", exact=True).fill("30")
    answer = models[name].predict(run(page))
    if name == "diffusion":
        page.get_by_role("button", name="Play").wait_for()  # it has played to its end
    shown = page.locator(".answer").inner_text().replace("\xa0", " ")
    assert read_answer(page) == json.loads(json.dumps(answer))
    for text in SEEN[name]((answer.get("results") or answer["samples"])[0]):
        assert text.replace(" ", "") in re.sub(r"\s", "", shown), (text, shown)


def test_a_draft_is_shown_pass_by_pass(page: Any, models: dict[str, Model]):
    page.emulate_media(reduced_motion="reduce")
    open_model(page, "diffusion")
    page.locator("form.card textarea").first.fill("the ___ sat")
    (result,) = models["diffusion"].predict(run(page))["results"]
    text, slider = page.locator(".draft .text"), page.get_by_label("draft", exact=True)
    assert text.text_content() == result["text"] == result["drafts"][-1]  # nothing moves by itself
    steps = [result["input"], *result["drafts"]]
    for step, (before, draft) in enumerate(pairwise(steps), 1):
        slider.fill(str(step))
        assert text.text_content() == draft
        changes = "".join(new for old, new in zip(before, draft, strict=True) if old != new)
        assert "".join(text.locator("mark").all_text_contents()) == changes != ""
    slider.fill("0")
    assert text.text_content() == result["input"]
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("text => document.querySelector('.draft .text').textContent === text", arg=result["text"])


def test_a_grid_of_digits_is_shown_as_one(page: Any):
    page.emulate_media(reduced_motion="reduce")
    page.goto("/")
    draw = """async ([before, after]) => (await import("/page/answers.js"))
        .drawAnswer("drafts", { results: [{ input: before, text: after, passes: 1, drafts: [after] }] })[0]
        .querySelector(".text").innerHTML"""
    assert page.evaluate(draw, ["12345678123_5678", "1234567812345678"]) == "1234\n5678\n123<mark>4</mark>\n5678"
    assert page.evaluate(draw, ["a text of 16 ch_", "a text of 16 cha"]) == "a text of 16 ch<mark>a</mark>"


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_continued_as_python_continues_them(page: Any, models: dict[str, Model], name: str):
    open_model(page, name)
    page.get_by_label("Text to continue").fill("the cat")
    page.get_by_label("tokens", exact=True).fill("30")
    page.get_by_label("top k").fill("20")
    page.get_by_label("samples").fill("2")
    request = run(page)
    assert request["stream"] and request["max_tokens"] == 30 and request["n"] == 2 and "top_p" not in request
    samples = models[name].predict({"prompt": "the cat", "tokens": 30, "top_k": 20, "samples": 2})["samples"]
    assert page.locator(".answer .new").all_text_contents() == [sample["text"] for sample in samples]
    assert re.match(r"\d+ tokens in .* tokens a second", page.locator(".facts").inner_text())


@pytest.mark.parametrize("name", ["classify", "masked"])
def test_texts_are_compared(page: Any, models: dict[str, Model], name: str):
    open_model(page, name, tab=1)
    page.get_by_label("Texts, one a line").fill("good\nbad\ngood dog")
    request = run(page)
    assert request == {"embed": ["good", "bad", "good dog"]}
    vectors = np.array(models[name].predict(request)["vectors"])
    cells = page.locator(".matrix rect")
    assert cells.count() == 9
    cells.nth(1).dispatch_event("pointerenter")
    value = float(page.locator(".readout").inner_text().split(": ")[1])
    assert value == pytest.approx(vectors[0] @ vectors[1], abs=0.01)


def test_the_next_action_is_chosen(page: Any, models: dict[str, Model]):
    open_model(page, "control", tab=1)
    answer = models["control"].predict(run(page))
    assert read_answer(page) == json.loads(json.dumps(answer))


def test_a_recipe_from_outside_is_asked_with_anything(page: Any):
    open_model(page, "outside")
    assert page.get_by_text("say what was asked").count() == 1
    for text, value in (("<b>a text</b>", "<b>a text</b>"), ('{"steps": [1, null]}', {"steps": [1, None]})):
        page.get_by_label("Input: a text, or JSON").fill(text)
        assert run(page) == {"input": value}
        assert json.loads(page.locator("details.raw pre").inner_text()) == {"results": [{"input": value}]}


# --- files ---


def test_an_image_is_recognized_as_soon_as_it_is_there(page: Any, models: dict[str, Model], tmp_path: Path):
    path = write_image(tmp_path / "digit.png")
    open_model(page, "vision")
    assert run(page, lambda: page.set_input_files("input[type=file]", path)) == {}
    expected = models["vision"].predict(str(path))["results"][0]
    assert page.locator(".headline .big").inner_text() == expected["label"]
    assert read_answer(page)["results"][0] == json.loads(json.dumps(expected | {"input": "digit.png"}))
    assert page.locator(".preview img").evaluate("image => image.naturalWidth") > 0
    run(page, lambda: page.get_by_text("Examples of the model").click())
    assert read_answer(page) == json.loads(json.dumps(models["vision"].predict(input=None)))


def test_a_photo_is_taken(page: Any):
    open_model(page, "vision")
    page.get_by_text("Camera", exact=True).click()
    page.wait_for_function("() => document.querySelector('video')?.videoWidth > 0")
    run(page, page.get_by_text("Take the picture").click)
    assert page.locator(".bars li").count() == 10


def test_a_sound_is_transcribed(page: Any, models: dict[str, Model], tmp_path: Path):
    path = write_sound(tmp_path / "tone.wav")
    open_model(page, "speech")
    run(page, lambda: page.set_input_files("input[type=file]", path))
    expected = models["speech"].predict(str(path))["results"][0]
    assert page.locator(".answer .text").inner_text() == (expected["text"] or "—")
    assert page.locator(".wave path").get_attribute("d")


def test_words_appear_while_the_microphone_is_on(page: Any):
    open_model(page, "speech")
    record = page.get_by_role("button", name="Record")
    record.click()
    page.wait_for_function(DONE)  # a first transcript, of what was recorded so far
    assert page.locator("button[aria-pressed=true]").inner_text() == "Stop"
    run(page, page.locator("button[aria-pressed=true]").click)
    assert page.get_by_text("seconds of sound").count() == 1
    assert page.locator("figcaption").inner_text() == "recording.wav"


def test_a_row_is_answered_as_it_changes(page: Any, models: dict[str, Model], tmp_path: Path):
    path = write_image(tmp_path / "chart.png")
    open_model(page, "multimodal")
    before = run(page)["input"]
    after = run(page, lambda: page.get_by_label("device").select_option("missing"))["input"]
    assert after == {name: value for name, value in before.items() if name != "device"}
    after = run(page, lambda: page.get_by_label("power").press("ArrowUp") or page.get_by_label("power").blur())["input"]
    assert after["power"] == pytest.approx(before["power"] + 1)
    sent = run(page, lambda: page.get_by_label("picture").set_input_files(path))["input"]
    expected = models["multimodal"].predict(sent | {"picture": str(path)})
    assert read_answer(page) == json.loads(json.dumps(expected))


def test_numbers_and_tables_are_forecast(page: Any, models: dict[str, Model]):
    open_model(page, "forecast")
    request = run(page)
    assert [*request["input"][0]] == ["sales", "visitors", "promotion"]
    assert page.locator(".plot .band").count() == 4 and page.locator(".plot .past").count() == 2
    page.locator(".answer .plot").hover()
    page.locator(".answer .plot").dispatch_event("pointermove", {"clientX": 0})
    rows = page.get_by_text("As a table")
    rows.click()
    assert page.locator("tbody tr").count() == 6


# --- talking, and giving up ---


def test_a_conversation_has_a_memory(page: Any, models: dict[str, Model]):
    open_model(page, "chat")
    page.get_by_text("Settings").click()
    page.get_by_label("tokens", exact=True).fill("8")
    page.get_by_label("System message").fill("be brief")
    messages = [{"role": "system", "content": "be brief"}]
    for text in ("Hello!", "And then?"):
        page.get_by_label("Your message").fill(text)
        page.get_by_label("Your message").press("Enter")
        page.wait_for_function("() => !document.body.classList.contains('busy')")
        messages.append({"role": "user", "content": text})
        expected = models["chat"].predict({"messages": messages, "tokens": 8})["samples"][0]["text"]
        assert page.locator(".assistant .text").last.text_content() == expected
        messages.append({"role": "assistant", "content": expected})
    page.get_by_text("New conversation").click()
    assert page.locator(".chat .assistant").count() == 0


def test_an_answer_can_be_stopped(page: Any, server: Any):
    from serve_kit import wait_for

    open_model(page, "chat", tab=1)  # its answers never end by themselves
    page.get_by_label("tokens", exact=True).fill("4000")
    page.locator("form.card button.primary").click()
    page.wait_for_function("() => document.querySelector('.answer .new')?.textContent.length > 20")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function("() => /^stopped after/.test(document.querySelector('.facts').textContent)")
    assert len(page.locator(".answer .new").text_content()) < 4000
    wait_for(lambda: server.running("chat") == 0, "the place is free")


# --- what can go wrong ---


def test_errors_are_said_in_the_server_s_words(page: Any):
    open_model(page, "masked")
    page.get_by_label("Text, with [MASK]").fill("<b>no mask</b><img src=x onerror=alert(1)>")
    page.locator("form.card button.primary").click()
    message = page.get_by_role("alert").inner_text()
    assert "hides nothing" in message or "vocabulary" in message
    assert page.locator(".answer b, .answer img").count() == 0
    page.get_by_role("tab").nth(1).click()
    assert page.get_by_role("alert").count() == 0


def test_a_key_is_asked_for_until_it_is_right(browser: Any, models: dict[str, Model]):
    from serve_kit import serve

    with serve({"tagger": models["tagging"]}, api_key="open-sesame") as server:
        context = browser.new_context(base_url=server.url)
        context.add_init_script(RECORD_FETCH)
        page = context.new_page()
        page.goto("/")
        page.get_by_label("API key").wait_for()
        assert not page.locator("#key-wrong").is_visible()
        for key in ("wrong", "open-sesame"):
            page.get_by_label("API key").fill(key)
            page.get_by_label("API key").press("Enter")
            page.locator("#key-wrong, h1:text-is('tagger')").locator("visible=true").wait_for()
        run(page)
        assert page.evaluate("() => [sessionStorage.length, localStorage.length]") == [1, 0]
        assert page.locator("#models").is_hidden()  # of a single model there is nothing to choose
        page.reload()
        page.locator("h1:text-is('tagger')").wait_for()
        context.close()


# --- the same request elsewhere ---


def copy(page: Any, name: str) -> str:
    page.get_by_title(f"as {name}").click()
    page.get_by_title(f"as {name}").and_(page.get_by_text("Copied")).wait_for()
    return page.evaluate("() => navigator.clipboard.readText()")


def test_requests_are_copied_as_commands(page: Any, tmp_path: Path):
    open_model(page, "translation")
    run(page)
    answer = read_answer(page)
    command = copy(page, "curl")
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert json.loads(process.stdout) == answer
    program = copy(page, "Python")
    assert program.startswith("import requests\n") and '"align": True' in program
    compile(program, "snippet", "exec")


def test_texts_are_copied_for_the_client_of_openai(page: Any, models: dict[str, Model]):
    pytest.importorskip("openai")
    open_model(page, "language")
    page.get_by_label("Text to continue").fill('it\'s "the" cat\n')
    page.get_by_label("tokens", exact=True).fill("9")
    page.get_by_label("min p").fill("0.05")
    program = copy(page, "Python")
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    sample = models["language"].predict({"prompt": 'it\'s "the" cat\n', "tokens": 9, "min_p": 0.05})["samples"][0]
    assert process.stdout == sample["text"] + "\n"


def test_files_are_copied_as_parts_of_a_form(page: Any, tmp_path: Path):
    path = write_image(tmp_path / "digit.png")
    open_model(page, "vision")
    run(page, lambda: page.set_input_files("input[type=file]", path))
    answer = read_answer(page)
    process = subprocess.run(
        ["bash", "-c", copy(page, "curl")], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert json.loads(process.stdout) == answer


# --- the lens ---


def test_the_lens_is_one_click_away(page: Any):
    """It runs its own scripts, in a frame that is a stranger to the page."""
    open_model(page, "tagging")
    page.get_by_role("button", name="Look inside").click()
    frame = page.frame_locator("dialog.lens iframe")
    frame.get_by_role("heading", name="Inside tagging").wait_for()
    assert frame.locator("#layer-text").inner_text() == "2 of 2"
    inner = page.frames[1]
    assert inner.evaluate("() => window.origin") == "null"
    assert (
        inner.evaluate("() => { try { return parent.document.title; } catch (error) { return error.name; } }")
        == "SecurityError"
    )
    page.get_by_role("button", name="Close").click()
    page.locator("dialog.lens").wait_for(state="detached")
    for name, tab in (("mlp", 0), ("classify", 1), ("control", 0)):
        open_model(page, name, tab)
        assert page.get_by_role("button", name="Look inside").count() == 0


# --- for everybody ---


NAMELESS = """() => [...document.querySelectorAll('input, select, textarea, button')]
    .filter((x) => x.offsetParent && x.getAttribute('aria-hidden') !== 'true')
    .filter((x) => !(x.labels?.length || x.ariaLabel || x.textContent.trim())).map((x) => x.outerHTML)"""


def test_every_form_fits_a_phone_and_has_names(page: Any):
    """Nothing is cut off at 390 pixels; every control has a name for a screen reader."""
    page.set_viewport_size({"width": 390, "height": 844})
    for name in [*list_recipes(), "outside"]:
        open_model(page, name)
        page.locator("details.settings").evaluate_all("all => all.forEach((part) => (part.open = true))")
        if name not in (*FILES, *TALKS):
            run(page)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390, name
        assert page.evaluate(NAMELESS) == [], name
        assert page.locator("main h1").count() == 1


def test_a_keyboard_is_enough(page: Any):
    open_model(page, "tagging")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the form"
    page.get_by_label("Text", exact=True).focus()
    run(page, lambda: page.keyboard.press("Control+Enter"))
    open_model(page, "classify")
    page.get_by_role("tab").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab").nth(1).get_attribute("aria-selected") == "true"
    assert page.get_by_label("Texts, one a line").is_visible()


def test_the_page_is_files_alone(server: Any):
    """No script and no style within the markup: the policy of the server forbids them."""
    response = server.client.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src)|<style|style=|\son\w+=|https?://(?!www\.w3\.org)", response.text)
    for name in ("app.js", "style.css", "recorder.js"):
        text = server.client.get(f"/page/{name}").text
        assert "innerHTML" not in text and not re.search(r"https?://(?!www\.w3\.org)", text)
