"""lm-eval's model class, with lm-eval where it is installed, and with a stand-in for its base class."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from anyformer.errors import InputError
from anyformer.evaluation.harness import build_harness_model, run_tasks
from anyformer.inference.likelihood import encode_pair, score_pairs
from anyformer.trained_model import Model
from serve_kit import build_chat_model

HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None
TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return build_chat_model(tmp_path_factory.mktemp("harness"), context=64)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model")}
    modules["lm_eval.api.model"].TemplateLM = object  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def ask(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


@pytest.mark.usefixtures("stand_in")
def test_requests_are_scored_and_answered(model: Model):
    harness, decoder = build_harness_model(model), model.recipe.decoder(model.module)
    tokenizer = decoder.tokenizer
    pair = encode_pair("Now is", " the winter", tokenizer)
    (score,) = harness._loglikelihood_tokens([(("Now is", " the winter"), *pair)])
    assert score == tuple(score_pairs(decoder, [pair])[0])
    assert harness.tok_encode("Now is") == tokenizer.encode_prompt("Now is").tolist()
    assert harness.eot_token_id == tokenizer.end_id
    (text,) = harness.generate_until([ask("Now", {"until": ["e"], "max_gen_toks": 9})])
    assert text == model.generate("Now", tokens=9, temperature=0, stop=["e"])["samples"][0]["text"]


@pytest.mark.usefixtures("stand_in")
def test_a_long_text_is_scored_whole(model: Model):
    """Windows do not overlap: the first token of each is read after the last of the one before."""
    harness, decoder = build_harness_model(model), model.recipe.decoder(model.module)
    text = "Now is the winter of our discontent made glorious summer " * 4
    ids = [decoder.tokenizer.end_id, *decoder.tokenizer.encode(text).tolist()]
    ids = ids if ids[0] is not None else ids[1:]
    from anyformer.inference.likelihood import Pair

    single = sum(
        score_pairs(decoder, [Pair(ids[(i - 1) // 64 * 64 : i], [ids[i]])])[0].logprob for i in range(1, len(ids))
    )
    assert harness.loglikelihood_rolling([ask(text)]) == [pytest.approx(single, abs=1e-3)]


@pytest.mark.skipif(HAS_HARNESS, reason="lm-eval is installed")
def test_what_is_missing_is_named(model: Model):
    with pytest.raises(InputError, match=r"pip install 'anyformer\[evaluation\]'"):
        run_tasks(model, ["arc_easy"], None, None)


@pytest.mark.skipif(not HAS_HARNESS, reason="lm-eval is not installed: pip install lm-eval")
def test_tasks_of_a_file(model: Model, tmp_path: Path):
    rows = [{"question": "Now is the", "choices": [" winter", " summer", " king"], "answer": i % 3} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    results = run_tasks(model, [str(tmp_path / "sums.yaml")], None, None)
    assert results["sums"]["acc,none"] == pytest.approx(1 / 3), results
    with pytest.raises(InputError, match="lm-eval knows no task 'nothing'"):
        run_tasks(model, ["nothing"], None, None)
