"""The form of every recipe: what it says a model takes and gives is what `predict` takes and gives."""

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from anyformer import recipe_loading
from anyformer.errors import InputError
from anyformer.forms import DIALECT, Task, describe_form, list_fields, make_request
from anyformer.inference.completion import CompletionRequest
from anyformer.inference.translation import TranslationRequest, align_tokens
from anyformer.parsing import read_field_docs, read_ranges
from anyformer.recipe import SupportsForm
from anyformer.trained_model import Model
from serve_kit import build_model as build

all_recipes = pytest.mark.parametrize("name", recipe_loading.list_recipes())


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {}


@pytest.fixture
def model(name: str, models: dict[str, Model], tmp_path: Path) -> Model:
    if name not in models:
        models[name] = build(name, tmp_path)
    return models[name]


def test_fields_that_a_request_inherits_come_after_its_own():
    """Also of a class that has none of its own: from Python 3.14 on no class keeps its annotations in its __dict__."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Inherits(TranslationRequest):
        pass

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Adds(TranslationRequest):
        mood: str = "calm"

    inherited = [field.name for field in dataclasses.fields(TranslationRequest)]
    tasks = [Task("Translate", "text", request, "translations") for request in (Inherits, Adds)]
    assert [list_fields(task) for task in tasks] == [inherited, ["mood", *inherited]]


TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
TYPES |= {"integer": int, "number": (int, float)}


def is_of_type(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean") == isinstance(value, bool)


def find_errors(schema: dict[str, Any], value: Any, where: str = "") -> list[str]:
    """What of a value does not fit a JSON schema, as far as `forms` uses its words."""
    if "anyOf" in schema:
        options = [find_errors(option, value, where) for option in schema["anyOf"]]
        return [] if [] in options else options[0]
    names = schema.get("type", [])
    errors = []
    if names and not any(is_of_type(value, name) for name in ([names] if isinstance(names, str) else names)):
        errors.append(f"{where} is {value!r:.60}, not {names}")
    if "enum" in schema and value not in schema["enum"]:
        errors.append(f"{where} is {value!r}, none of {schema['enum']}")
    if is_of_type(value, "number"):
        fits = schema.get("minimum", value) <= value <= schema.get("maximum", value)
        errors += [] if fits else [f"{where} is {value}, out of range"]
    if isinstance(value, dict):
        errors += [f"{where} lacks {key}" for key in schema.get("required", ()) if key not in value]
        others = schema.get("additionalProperties", {})
        for key, part in value.items():
            inner = schema.get("properties", {}).get(key, others)
            errors += (
                [f"{where} has {key}"]
                if inner is False
                else find_errors({} if inner is True else inner, part, f"{where}.{key}")
            )
    if isinstance(value, list):
        errors += [
            e for i, part in enumerate(value) for e in find_errors(schema.get("items", {}), part, f"{where}[{i}]")
        ]
    return errors


@all_recipes
def test_every_recipe_describes_what_it_takes_and_gives(name: str, model: Model):
    assert isinstance(model.recipe, SupportsForm)
    schema = json.loads(json.dumps(model.describe_request(), allow_nan=False))
    assert (schema["$schema"], schema["title"], schema["additionalProperties"]) == (DIALECT, name, False)
    assert len(schema["examples"]) == len(schema["x-tasks"]) > 0
    for request in schema["examples"]:
        assert find_errors(schema, request) == []
        answer = json.loads(json.dumps(model.predict(request)))
        assert find_errors(schema["$defs"]["response"], answer) == []
        assert answer.get("results") or answer.get("samples") or answer["vectors"]


def list_settings(model: Model) -> list[tuple[dict[str, Any], dict[str, Any], str, dict[str, Any]]]:
    """(an example of the task, the task, the name of a setting, its schema) of every setting of a model."""
    schema = model.describe_request()
    settings = []
    for task, request in zip(schema["x-tasks"], schema["examples"], strict=True):
        properties = schema["properties"]
        properties = properties[task["field"]]["properties"] if task["nested"] else properties
        settings += [(request, task, name, properties[name]) for name in task["settings"]]
    return settings


def change(request: dict[str, Any], task: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    if task["nested"]:
        return {task["field"]: {**request.get(task["field"], {}), name: value}}
    return {**request, name: value}


@all_recipes
def test_every_setting_is_accepted_with_its_default(name: str, model: Model):
    short = {"tokens": 3, "episodes": 1}  # as many as show it
    settings = list_settings(model)
    for request, task, setting, schema in settings:
        value = short.get(setting, schema["default"])
        for other in short.keys() & {name for _, of, name, _ in settings if of is task} - {setting}:
            request = change(request, task, other, short[other])
        assert model.predict(change(request, task, setting, value)), (setting, value)
        assert find_errors(schema, schema["default"]) == [], setting


@all_recipes
def test_every_number_is_refused_beyond_its_range(name: str, model: Model):
    for request, task, setting, schema in list_settings(model):
        beyond = [schema["maximum"] + max(1, abs(schema["maximum"]))] if "maximum" in schema else []
        beyond += [schema["minimum"] - max(1, abs(schema["minimum"]))] if "minimum" in schema else []
        for value in beyond:
            with pytest.raises(InputError, match=setting):
                model.predict(change(request, task, setting, value))


def test_the_fields_are_those_of_the_dataclass():
    """Type, range, default and help, and nothing of them twice."""
    fields = describe_form(build_form("translation"))["properties"]
    assert fields["beam"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 256,
        "title": "beam",
        "description": read_field_docs(TranslationRequest)["beam"],
        "default": 4,
    }
    assert fields["n_best"]["maximum"] == 256  # and not the beam of the defaults
    assert read_ranges(CompletionRequest)["seed"] == {"at_least": 0, "below": 1 << 40}
    fields = describe_form(build_form("language"))["properties"]
    assert fields["temperature"]["x-usual"] == [0.0, 2.0] and "messages" not in fields
    assert fields["top_p"]["type"] == ["number", "null"] and "exclusiveMaximum" in fields["seed"]


def build_form(name: str) -> Any:
    return build(name, Path("nowhere")).form()


def test_tables_list_their_fields(tmp_path: Path):
    model = build("multimodal", tmp_path)
    row = model.describe_request()["properties"]["input"]["properties"]
    fields: Any = {field.name: field for field in model.module.schema.fields}
    assert set(row) == set(fields) and row["device"]["x-kind"] == "choice"
    assert row["device"]["examples"] == [*fields["device"].values]
    low, high = row["power"]["x-usual"]
    assert low < high and "null" in row["power"]["type"] and row["motion"]["x-kind"] == "numbers"


def test_a_model_without_attention_between_texts_offers_no_alignment(tmp_path: Path):
    assert "align" in build("rnnsearch", tmp_path).describe_request()["properties"]
    seq2seq = build("seq2seq", tmp_path)
    assert "align" not in seq2seq.describe_request()["properties"]
    with pytest.raises(InputError, match="align: this model has no attention"):
        seq2seq.predict("12", align=True)


def test_alignments_are_those_of_the_answer(tmp_path: Path):
    model = build("translation", tmp_path)
    result = model.predict("0123", align=True, tokens=5)["results"][0]
    alignment = result["alignment"]
    assert alignment["columns"] == [*"0123", "·"] and "".join(alignment["rows"]) == result["text"] + "·"
    assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in alignment["weights"])
    assert {len(row) for row in alignment["weights"]} == {5} and len(alignment["weights"]) == len(alignment["rows"])
    tokens = list(range(3)) * 8  # as many as the context of the decoder holds: the end was not predicted
    alignment = align_tokens(model.module, [1, 2], tokens)
    assert len(alignment["rows"]) == len(alignment["weights"]) == 24 and "·" not in alignment["rows"]


def test_episodes_can_be_traced(tmp_path: Path):
    request = {"rollout": {"target_return": [5.0, 18.0], "episodes": 2, "trace": True}}
    for result in build("control", tmp_path).predict(request)["results"]:
        trace = result["trace"]
        assert sum(trace["rewards"]) == pytest.approx(result["returns"][0])
        assert len(trace["states"]) == len(trace["actions"]) == len(trace["rewards"]) == 20


def test_a_recipe_from_outside_is_asked_with_anything(tmp_path: Path):
    recipe: Any = ModuleType("outside")
    recipe.predict = lambda model, request: {"results": [request]}
    model = Model(recipe, None, torch.nn.Identity(), {"step": 0}, tmp_path)
    schema = model.describe_request()
    assert schema["additionalProperties"] is True and schema["x-tasks"][0]["kind"] == "json"
    assert find_errors(schema, {"input": [1, {"a": None}], "steps": 3}) == []
    assert schema["examples"] == [{}] and model.predict({"input": 3}) == {"results": [{"input": 3}]}


def test_examples_of_the_run_come_first(run: Path):
    from anyformer import load
    from anyformer.forms import add_examples
    from anyformer.recipe import Examples

    model = load(run, "cpu")
    assert model.form().tasks[0].examples == ("\n",)  # a language model is shown with its own prompt
    form = build_form("tagging")
    request = Examples({"input": ["one", "two"], "cut": True}).request
    task = add_examples(form, request).tasks[0]
    assert make_request(task, task.examples[1]) == {"input": "two", "cut": True}
    texts = add_examples(build_form("classify"), {"input": ["one\n\nline", "x" * 99], "cut": True}).tasks[1]
    assert texts.examples == (["one line", "x" * 80],) and make_request(texts, ["a"]) == {"embed": ["a"], "cut": True}
    assert add_examples(build_form("vision"), {"input": ["a.png"]}).tasks[0].examples == ()
