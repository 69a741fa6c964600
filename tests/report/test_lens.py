"""The lens: what it shows of every recipe is what the model computes, and small enough for a page."""

import base64
import dataclasses
import json
import re
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import anyformer
from anyformer import recipe_loading
from anyformer.errors import InputError
from anyformer.model import Transformer, TransformerConfig, causal, initialize
from anyformer.model.trace import record
from anyformer.recipe import LensNodes, LensView, SupportsLens
from anyformer.recipes._shared.row_lenses import draw_fields
from anyformer.recipes._shared.text_lenses import draw_repeated_ids
from anyformer.report.lens import build_lens, render_lens
from anyformer.report.lens.build import share_weights
from anyformer.report.lens.effects import group_nodes, measure_patches
from anyformer.report.lens.measure import read_streams, summarize_heads
from anyformer.report.lens.pack import choose_kept, pack_mask, pack_weights, share_bytes
from anyformer.trained_model import Model
from cli_kit import assert_refused, call
from data_kit import SMALL_DATA, refuses

QUICK = {
    "test_the_last_reading_is_the_answer_and_every_node_has_a_name": {
        "recall",
        "tts",
        "text2image",
        "tagging",
        "speech",
        "spans",
    },
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


INPUTS: dict[str, dict[str, Any]] = {
    "chat": {"input": "Spell fox"},
    "preference": {"input": "Spell fox"},
    "grpo": {"input": "Add 3 and 4"},
    "language": {"input": "To be, or not"},
    "recall": {"input": "To be"},
    "music": {"input": "M:6/8\nK:G\nGBB BAG|"},
    "masked": {"input": "To [MASK]e, or"},
    "classify": {"input": "my lord", "cut": True},
    "tagging": {"input": "buy milk"},
    "translation": {"input": "31415"},
    "spans": {"input": "To be, ___ to be"},
    "diffusion": {"input": "To be, ___ to be"},
    "mask_predict": {"input": "31415"},
    "text2image": {"input": "3"},
    "tts": {"input": "six"},
    "control": {"input": {"states": [[0.1, 0.2], [0.3, 0.1]], "actions": [1], "returns": [5, 4]}},
    "multimodal": {"input": {"power": 3.5, "device": "b"}},
    "msa": {},
}
NAMES = [name for name in recipe_loading.list_recipes() if isinstance(recipe_loading.load_recipe(name), SupportsLens)]
WITHOUT = set(recipe_loading.list_recipes()) - set(NAMES)
MODELS: dict[str, Model] = {}


def build(name: str) -> Model:
    """A random model of the tiny preset, whose weights are large enough to matter."""
    if name not in MODELS:
        recipe: Any = recipe_loading.load_recipe(name)
        config = recipe.PRESETS["tiny"]
        config = dataclasses.replace(config, data=str(SMALL_DATA.get(name, config.data)))
        torch.manual_seed(0)
        module = recipe.build(config).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        MODELS[name] = Model(recipe, config, module, {"step": 0}, Path("nowhere"))
    return MODELS[name]


def look(name: str, **request: Any) -> tuple[Model, LensView, torch.Tensor, Any]:
    model: Any = build(name)
    view = model.recipe.lens(model.module, INPUTS.get(name, {}) | request)
    with torch.no_grad(), model.record() as trace:
        scores = view.forward()
    return model, view, scores, trace


# --- every recipe ---


def test_recipes_without_a_transformer_are_the_only_ones_without_a_lens():
    assert sorted(WITHOUT) == ["generalist", "mlp", "rnnsearch", "seq2seq"], "a generalist has tasks instead"
    for name in WITHOUT - {"generalist"}:
        with refuses(f"the model of '{name}' has no Transformer"):
            build_lens(build(name), "a")
    language = build("language")
    outside = SimpleNamespace(recipe=object(), module=language.module, name="mine.py")
    with refuses("the recipe 'mine.py' does not say what its nodes are", "`lens`"):
        build_lens(outside, "a")


@pytest.mark.parametrize("name", NAMES)
def test_the_last_reading_is_the_answer_and_every_node_has_a_name(name: str):
    model, view, scores, trace = look(name)
    with torch.no_grad():
        readings = list(read_streams(model.module, view, trace))
    assert torch.equal(readings[-1], scores) and not torch.equal(readings[0], scores)
    assert len(readings) == 1 + len(trace[list(view.stacks)[-1]].edges)
    assert len(view.rows) == len(scores)
    for stack, nodes in view.stacks.items():
        assert len(nodes.labels) == len(nodes.kinds) == trace[stack].input.shape[1]
        assert not nodes.boxes or len(nodes.boxes) == len(nodes.labels)
    assert all(isinstance(view.name_output(i), str) for i in range(min(3, scores.shape[1])))
    assert all(not vars(part).get("forward") for part in model.module.modules())


@pytest.mark.parametrize("name", NAMES)
def test_the_page_holds_all_of_it(name: str):
    model = build(name)
    data = build_lens(model, INPUTS.get(name, {}))
    page = render_lens(data)
    stored = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert stored and json.loads(stored[1]) == json.loads(json.dumps(data))
    assert not re.search(r"(src|href)=|url\(|https?:|@import", page.replace(stored[1], ""))
    part = data["attention"][-1]
    shape = (part["heads"], len(data["stacks"][part["query"]]["labels"]), len(data["stacks"][part["key"]]["labels"]))
    values = np.frombuffer(base64.b64decode(part["layers"][0]["values"]), np.uint8)
    assert values.size == np.prod(shape)
    assert set(data["ablation"]["groups"]) == {"sublayers", "edges", "heads"}
    kinds = {p["kind"] for p in data["attention"]}
    assert kinds == ({"attn", "cross"} if len(data["stacks"]) == 2 else {"attn"})


def answer_of(name: str, view: LensView, scores: torch.Tensor) -> Any:
    return scores[view.answer].softmax(-1) if view.is_logits else scores[view.answer]


@pytest.mark.parametrize("name", ["classify", "vision", "control", "masked", "tagging", "multimodal", "forecast"])
def test_the_answer_is_that_of_predict(name: str):
    model, view, scores, _ = look(name)
    request = {"input": INPUTS[name]["input"]} if name in INPUTS else {}
    result = model.predict(request)["results"][0]
    answer = answer_of(name, view, scores)
    if name == "forecast":
        torch.testing.assert_close(answer.tolist(), result["median"], rtol=1e-4, atol=1e-4)
    elif name == "masked":
        likeliest = result["masks"][0][0]
        assert view.name_output(int(answer.argmax())) == likeliest["token"]
        assert float(answer.max()) == pytest.approx(likeliest["probability"], rel=1e-4)
    elif name == "control":
        torch.testing.assert_close(answer.tolist(), result["probabilities"], rtol=1e-4, atol=1e-6)
    elif name == "tagging":
        tags = [view.name_output(int(row.argmax())) for row in scores]
        assert tags == [word["tag"] for word in result["words"]]
    else:
        result = next(iter(result.values())) if name == "multimodal" else result
        assert view.name_output(int(answer.argmax())) == result["label"]
        assert float(answer.max()) == pytest.approx(result["probability"], rel=1e-4)


@pytest.mark.parametrize("name", ["translation", "spans", "speech"])
def test_a_target_of_the_models_own_is_what_it_writes(name: str):
    """Greedy: each token is the likeliest after those before it."""
    _, view, scores, _ = look(name)
    written = [view.name_output(int(row.argmax())) for row in scores[view.answer : -1]]
    labels = view.stacks["decoder"].labels
    assert written == list(labels[len(labels) - len(written) :])
    target = view.shared["target"]
    again = look(name, target=target)[2]
    assert torch.equal(again, scores)


def test_the_next_token_is_that_of_the_model():
    for name in ("language", "recall"):
        model, view, scores, _ = look(name)
        sample = model.generate("To be, or not" if name == "language" else "To be", tokens=1, temperature=0)
        assert model.module.tokenizer.decode([int(scores[-1].argmax())]) == sample["samples"][0]["text"], view.rows


def test_images_sounds_and_series_of_a_row_are_one_picture():
    fields = [
        SimpleNamespace(name="photo", kind="image", nodes=4, patch=2),
        SimpleNamespace(name="hum", kind="audio", nodes=3),
        SimpleNamespace(name="motion", kind="series", nodes=2, patch=3),
    ]
    photo = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    hum, motion = np.eye(5, 6, dtype=np.float32), np.array([[0, 1], [1, 2], [2, 1], [0, 1], [np.nan, 1], [1, 3]], float)
    picture, boxes = draw_fields(list(zip(fields, (photo, hum, motion), strict=True)))
    assert picture.dtype == np.uint8 and [len(b) for b in boxes.values()] == [4, 3, 2]
    for name, value in (("photo", photo[2:4, 0:2]), ("hum", None), ("motion", None)):
        x, y, w, h = boxes[name][2 if name == "photo" else 1]
        part = picture[y : y + h, x : x + w]
        assert part.shape == (h, w, 3)
        assert value is None or np.array_equal(part[:: h // 2, :: w // 2], value)
    x, y, w, h = boxes["motion"][1]
    assert picture[y + h - 1, x + w - 1, 0] == 255, "the last reading of the last channel is its largest"
    assert draw_fields([]) == (None, {})


# --- readings of heads ---


def test_summaries_of_heads_that_are_known():
    labels = ["a", "b", "c", "a", "b", "c"]
    n, w = len(labels), torch.zeros(4, 6, 6)
    w[0, range(1, n), range(n - 1)] = 1  # previous
    w[0, 0, 0] = 1
    w[1, :, 0] = 1  # first
    for q in range(n):
        w[2, q, q - 3 if q >= 3 else q] = 1  # the same label, three before
        w[3, q, q - 2 if q >= 3 else q] = 1  # what followed it
    summaries = summarize_heads(w, LensNodes(labels, ["token"] * n), True)
    values = {name: summary.tolist() for name, summary in summaries.items()}
    assert values["previous"][0] == 1 and values["first"][1] == 1 and values["entropy"] == [0, 0, 0, 0]
    assert values["same"][2] == 1 and values["induction"][3] == 1 and values["self"][2] == 0.5
    assert np.isnan(values["same"][3]) and values["distance"][1] == pytest.approx(2.5)


def test_prefix_matching_is_the_weight_on_what_followed_before():
    """In random tokens that repeat, over all earlier repeats."""
    model = build("language")
    ids = draw_repeated_ids(context=model.config.model.context, vocab_size=model.module.nodes.token.num_embeddings)
    period = len(set(ids))
    assert ids[period:] == ids[:-period] and len(ids) >= 2 * period > 2
    with torch.no_grad(), model.record() as trace:
        model.module.hidden(torch.tensor([ids]))
    scores = build_lens(model, INPUTS["language"])["attention"][0]["summaries"]["prefix matching"]
    for layer, row in enumerate(scores):
        for weights, score in zip(trace[f"body.blocks.{layer}.attn"].weights[0], row, strict=True):
            keys = {i: [k for k in range(1, i + 1) if ids[k - 1] == ids[i]] for i in range(period, len(ids))}
            expected = sum(float(weights[i, k].sum()) for i, k in keys.items()) / len(keys)
            assert score == pytest.approx(expected, rel=1e-3)


# --- ablation and patching ---


def test_ablations_are_those_of_the_model():
    model, view, scores, _ = look("language")
    data = build_lens(model, INPUTS["language"])
    base = float(scores[-1].log_softmax(-1).max())
    best = int(scores[-1].argmax())
    assert data["ablation"]["base"] == pytest.approx(base)
    groups = data["ablation"]["groups"]
    assert len(groups["heads"]) == 4 and len(groups["sublayers"]) == 4
    with torch.no_grad(), model.ablate("body.blocks.1.attn", heads=[1]):
        moved = view.forward()[-1].log_softmax(-1)
    change = groups["heads"]["body.blocks.1.attn.1"]
    assert change["change"] == pytest.approx(float(moved[best]) - base, abs=1e-3)
    assert ("answer" in change) == (int(moved.argmax()) != best)
    few = build_lens(model, INPUTS["language"], passes=5)["ablation"]
    assert set(few["groups"]) == {"sublayers"} and few["left_out"] == ["edges", "heads"]


def test_patching_moves_the_answer_from_one_input_to_the_other():
    """At the embedding of the only token that differs all of the way, at the others nothing."""
    model = build("language")
    data = build_lens(model, "To be, or", against="Xo be, or")
    (stack,) = data["patching"]["stacks"]
    assert stack["groups"] == [[i, i] for i in range(9)] and len(stack["grid"]) == 3
    assert stack["grid"][0] == pytest.approx([1] + [0] * 8, abs=1e-3)
    assert stack["grid"][-1] == pytest.approx([0] * 8 + [1], abs=1e-3)
    few = build_lens(model, "To be, or", against="Xo be, or", passes=9)["patching"]["stacks"][0]
    assert few["groups"] == [[0, 2], [3, 5], [6, 8]] and few["grid"][0] == pytest.approx([1, 0, 0], abs=1e-3)
    with refuses("the input has 5 nodes and the one to compare with 4", "equal length"):
        build_lens(model, "To be", against="To b")


def test_both_stacks_are_patched():
    model = build("translation")
    data = build_lens(model, "31415", against="31425")
    encoder, decoder = data["patching"]["stacks"]
    assert encoder["grid"][0] == pytest.approx([0, 0, 0, 1, 0, 0], abs=1e-2)
    assert len(decoder["grid"][0]) == len(data["stacks"][1]["labels"])
    edges = data["ablation"]["groups"]["edges"]
    assert edges["decoder: to the other stack"]["change"] != 0 and len(edges) == 13


@pytest.mark.parametrize(("count", "most"), [(10, 3), (10, 10), (10, 99), (1, 1), (1024, 10)])
def test_groups_of_nodes_cover_all(count: int, most: int):
    groups = group_nodes(count, most)
    assert len(groups) <= most and [i for first, last in groups for i in range(first, last + 1)] == [*range(count)]


# --- packing ---


@pytest.mark.parametrize("kept", [64, 8])
def test_packed_weights_are_near(kept: int):
    torch.manual_seed(0)
    weights = (3 * torch.randn(2, 16, 64)).softmax(-1)
    packed = pack_weights(weights, kept)
    top = np.frombuffer(base64.b64decode(packed["top"]), "<u2").reshape(2, 16, 1) / 65535
    values = np.frombuffer(base64.b64decode(packed["values"]), np.uint8).reshape(2, 16, kept) * top / 255
    restored = torch.zeros(2, 16, 64).double()
    indices = torch.arange(64).expand(2, 16, 64)
    if kept < 64:
        raw = np.frombuffer(base64.b64decode(packed["indices"]), "<u2").reshape(2, 16, kept)
        indices = torch.from_numpy(raw.astype(np.int64))
    restored.scatter_(2, indices, torch.from_numpy(values))
    chosen = torch.zeros(2, 16, 64, dtype=torch.bool).scatter_(2, weights.topk(kept).indices, True)
    assert ((restored - weights).abs() <= weights.amax(-1, keepdim=True) / 500 + 1e-5)[chosen].all()
    assert not restored[~chosen].any()


def test_the_weights_of_any_model_fit_into_the_page():
    kept = choose_kept(12 * 12 * 1024, 1024, 10 << 20)
    assert 16 <= kept < 1024 and 12 * 12 * 1024 * kept * 3 <= 10 << 20
    assert choose_kept(100, 50, 10 << 20) == 50
    assert share_bytes([100, 4, 70], 84) == [40, 4, 40] and share_bytes([1, 2], 9) == [1, 2]
    mask = causal.build_mask(1, 9, 9)[0, 0]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(pack_mask(mask)), np.uint8).reshape(9, 2), axis=1)[:, :9]
    assert np.array_equal(bits, mask.numpy())


# --- what a person gives ---


def test_what_exceeds_the_context_is_cropped_and_said():
    model = build("language")
    data = build_lens(model, "To be, or not to be: " * 4)
    assert data["notes"] == ["the input has 84 tokens and the context 32: the first 52 are cropped"]
    assert len(data["stacks"][0]["labels"]) == 32
    target = build_lens(build("translation"), {"input": "1" * 90, "target": "1" * 99})["notes"]
    assert [note.split()[1] for note in target] == ["input", "target"]


@pytest.mark.parametrize(
    ("name", "request_fields", "parts"),
    [
        ("language", {}, ["the lens needs an input"]),
        ("language", {"input": "a", "tokens": 3}, ["request", "tokens"]),
        ("language", {"input": 3}, ["input"]),
        ("masked", {"input": ""}, ["an empty text has no nodes"]),
        ("tagging", {"input": "  "}, ["the input has no word"]),
        ("vision", {"input": "missing.png"}, ["missing.png"]),
        ("speech", {"input": "missing.wav"}, ["missing.wav"]),
        ("control", {"input": "{"}, ["is not JSON"]),
        ("control", {"input": {"states": []}}, ["length 0"]),
        ("multimodal", {"input": {"nothing": 1}}, ["'nothing', which is no field"]),
        ("forecast", {"input": [1.0]}, ["this model reads the columns"]),
        ("translation", {"input": "1", "target": [10_000]}, ["outside of the vocabulary"]),
        ("speech", {"target": [-1]}, ["ids"]),
    ],
)
def test_what_cannot_be_shown_is_refused(name: str, request_fields: dict[str, Any], parts: list[str]):
    with refuses(*parts):
        build_lens(build(name), request_fields)


def test_more_nodes_than_a_page_can_show_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("anyformer.report.lens.build.MAX_NODES", 4)
    with refuses("the input makes 5 nodes in 'body'", "up to 4"):
        build_lens(build("language"), "To be")
    with refuses("row 9 of 2"):
        build_lens(build("language"), "To", answer=9)


def test_damaged_weights_are_one_line():
    model = build("classify")
    broken = Model(model.recipe, model.config, model.module, {"step": 0}, Path("nowhere"))
    weight = model.module.head.project.weight
    with torch.no_grad():
        kept = weight.clone()
        weight.fill_(float("nan"))
        try:
            with refuses("not finite"):
                build_lens(broken, "a")
        finally:
            weight.copy_(kept)


# --- the command ---


def test_the_command_writes_a_page(run_once: Path, tmp_path: Path):
    out = tmp_path / "lens.html"
    facts = call("lens", run_once, "--input", "the cat", "--against", "the dog", "--out", out, "--json").ok().json
    page = out.read_text(encoding="utf-8")
    assert facts["bytes"] == len(page.encode()) and facts["nodes"] == {"body": 7}
    assert (
        "Inside run" in page and "<span>language</span>" in page and facts["outcome"].startswith("log-probability of")
    )
    for words, part in (
        (("--input", "the cat", "--out", tmp_path), "--out"),
        (("--input", "the cat", "--out", tmp_path / "no" / "lens.html"), "--out"),
        (("--out", out), "the lens needs an input"),
        (("--input", "the cat", "--passes", -1), "passes is -1"),
        (("--input", "the cat", "--against", "a", "--out", out), "equal length"),
        (("--request", "3", "--out", out), "--request is 3"),
    ):
        assert_refused(call("lens", run_once, *words), part)


def test_an_example_of_the_run_is_shown_without_an_input(tmp_path: Path):
    anyformer.train(
        "classify", "tiny", data=str(SMALL_DATA["classify"]), steps=2, out=tmp_path / "run", device="cpu", yes=True
    )
    model = anyformer.load(tmp_path / "run", "cpu")
    examples = json.loads((tmp_path / "run" / "examples.json").read_text())
    labels = "".join(build_lens(model)["stacks"][0]["labels"])
    assert labels and examples["request"]["input"][0].startswith(labels)


# --- exactness of what the page draws ---


def test_text_in_the_data_cannot_end_the_script():
    data = build_lens(build("language"), "To be")
    data["stacks"][0]["labels"][0] = "</script><b>"
    data["title"] = "<i>"
    page = render_lens(data)
    assert page.count("</script>") == 2 and "<b>" not in page and "&lt;i&gt;" in page


def test_others_are_answered_meanwhile():
    """A server looks into a model that another thread runs: neither sees the other."""
    model, view, scores, _ = look("translation")
    expected = json.dumps(build_lens(model, "31415"))
    results: list[str] = []
    thread = Thread(target=lambda: results.append(json.dumps(build_lens(model, "31415"))))
    thread.start()
    count = 0
    while thread.is_alive() or count < 3:
        with torch.no_grad():
            assert torch.equal(view.forward(), scores)
        count += 1
    thread.join()
    assert results == [expected]
    own = share_weights(model.module, {})
    assert own is not model.module and own.source.token is own.target.token, "what is shared stays shared"
    assert all(a is b for a, b in zip(own.parameters(), model.module.parameters(), strict=True))


def test_a_post_norm_stack_is_read_as_it_is():
    config = TransformerConfig(dim=8, n_layer=2, n_head=2, context=8, norm_place="post")
    torch.manual_seed(0)
    module = torch.nn.ModuleDict({"body": Transformer(config)}).eval()
    initialize(module["body"], config)
    x, nodes = torch.randn(1, 3, 8), LensNodes(["a"] * 3, ["token"] * 3)

    def forward() -> torch.Tensor:
        return module["body"](x, causal)[0]

    view = LensView({"body": nodes}, forward, [("a", i) for i in range(3)], str)
    with torch.no_grad(), record(module) as trace:
        scores = forward()
    with torch.no_grad():
        readings = list(read_streams(module, view, trace))
        assert torch.equal(readings[-1], scores) and torch.equal(readings[0], x[0])
        same = measure_patches(module, view, view, scores, 100)
    assert np.abs(same["stacks"][0]["grid"]).max() == 0


def test_errors_are_of_the_person():
    with pytest.raises(InputError):
        build_lens(build("language"), {"messages": []})
