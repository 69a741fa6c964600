"""The tasks of lm-eval (EleutherAI's evaluation harness), asked of a model in this process.

    results = run_tasks(model, ["arc_easy"], shots=0, limit=None)

`build_harness_model` is lm-eval's model class, for whoever calls `lm_eval.simple_evaluate`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.io.files import import_optional
from ..data.tokenizers.base import Tokenizer
from ..errors import InputError
from ..inference.likelihood import Pair, score_pairs
from ..trained_model import Model
from .few_shot import find_decoder

MISSING = "the tasks of lm-eval need: pip install 'anyformer[evaluation]'"
MAX_NEW_TOKENS = 256  # of an answer whose task names no number


def run_tasks(
    model: Model, tasks: Sequence[str], shots: int | None, limit: int | None, seed: int = 0
) -> dict[str, Any]:
    """Return the results of tasks by name, or of a task's yaml file: {task: {metric: value}}. Tasks may download their
    data. Raises InputError."""
    harness = import_optional("lm_eval", MISSING)
    manager = import_optional("lm_eval.tasks", MISSING).TaskManager(
        include_path=sorted({str(Path(task).parent) for task in tasks if task.endswith(".yaml")}) or None
    )
    names = [Path(task).stem if task.endswith(".yaml") else task for task in tasks]
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise InputError(f"lm-eval knows no task '{unknown[0]}': `lm_eval ls tasks` lists them")
    results = harness.simple_evaluate(
        model=build_harness_model(model),
        tasks=names,
        num_fewshot=shots,
        limit=limit,
        bootstrap_iters=1000,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        task_manager=manager,
        log_samples=False,
    )
    return {name: {k: v for k, v in values.items() if k != "alias"} for name, values in results["results"].items()}


def build_harness_model(model: Model) -> Any:
    """Return a model as lm-eval's `TemplateLM`. Raises InputError if it continues no texts, or lm-eval is missing."""
    decoder, base = find_decoder(model), import_optional("lm_eval.api.model", MISSING).TemplateLM
    tokenizer: Tokenizer = decoder.tokenizer

    class HarnessModel(base):
        eot_token_id = tokenizer.end_id
        max_gen_toks = MAX_NEW_TOKENS

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            encode = tokenizer.encode if add_special_tokens is False else tokenizer.encode_prompt
            return encode(string).tolist()

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
            return [tuple(score) for score in score_pairs(decoder, [Pair(*ids) for _, *ids in requests])]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            return [score_text(decoder, request.args[0]) for request in requests]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return [complete(model, *request.args, self.max_gen_toks) for request in requests]

    return HarnessModel()


def score_text(decoder: Any, text: str) -> float:
    """Return the log-probability of a whole text, read in windows of the context that do not overlap."""
    ids, context, end_id = (
        decoder.tokenizer.encode(text).tolist(),
        decoder.body.config.context,
        decoder.tokenizer.end_id,
    )
    if end_id is not None:
        ids = [end_id, *ids]
    starts = range(1, len(ids), context)
    pairs = [Pair([ids[start - 1]], ids[start : start + context]) for start in starts]
    return sum(score.logprob for score in score_pairs(decoder, pairs))


def complete(model: Model, prompt: str, settings: dict[str, Any], tokens: int) -> str:
    """Answer a request of lm-eval: greedily unless it says otherwise."""
    until = settings.get("until") or []
    samples = settings.get("do_sample", False) and settings.get("temperature", 1.0) > 0
    request: dict[str, Any] = {"tokens": settings.get("max_gen_toks", settings.get("max_tokens", tokens))}
    request["temperature"] = settings.get("temperature", 1.0) if samples else 0
    request["stop"] = [until] if isinstance(until, str) else list(until)
    return model.generate(prompt, **request)["samples"][0]["text"]
