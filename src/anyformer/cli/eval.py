"""anyformer eval RUN: metrics of a trained model over the whole validation split, or its answers to questions."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InputError
from ..parsing import check_range
from .flags import REPEATABLE, DeviceFlag, JsonFlag, RecipeFlag, RunArgument, StoreFlag, WeightFormat
from .terminal import format_columns, print_status, show_progress

if TYPE_CHECKING:
    from ..trained_model import Model


@dataclass(frozen=True)
class Command:
    """Evaluate a model in one fixed pass over the whole validation split.

    Every token is predicted once; the figures are the same every time. With
    --choices, --questions or --tasks, a model that continues texts is asked
    questions instead, with examples before them."""

    run: RunArgument
    data: Annotated[str | None, "Other data than the run's own; all of it is used, because none was trained on."] = None
    scores: bool = False
    """Add metrics that need the model's answers: BLEU and chrF of translations, returns of an agent."""
    store: StoreFlag = None
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    weights: Annotated[WeightFormat | None, "Number format of the linear layers. Default: as trained."] = None
    json: JsonFlag = False
    choices: Annotated[Path | None, 'A jsonl file of {"question", "choices", "answer"}: the likeliest is taken.'] = None
    questions: Annotated[Path | None, 'A jsonl file of {"question", "answer"}: the answer is written.'] = None
    tasks: Annotated[tuple[str, ...], REPEATABLE, "A task of lm-eval, or its yaml file. May be repeated."] = ()
    shots: Annotated[tuple[int, ...], "Examples before each question; several numbers give a curve."] = (0,)
    examples: Annotated[Path | None, "A file like the one of questions that examples are drawn from."] = None
    template: Annotated[str | None, 'Default: "Question: {question}\\nAnswer: {answer}\\n\\n".'] = None
    limit: Annotated[int | None, "So many of the questions, drawn at random."] = None
    tokens: Annotated[int, "The most tokens of a written answer."] = 64
    seed: Annotated[int, "Of what is drawn."] = 0
    out: Annotated[Path | None, "A new folder for every answer (items.jsonl) and the curve (report.html)."] = None

    def __post_init__(self) -> None:
        check_range(self, "limit", at_least=1, at_most=10**9)
        check_range(self, "tokens", at_least=1, at_most=100_000)
        check_range(self, "seed", at_least=0, at_most=1 << 40)


def run(options: Command) -> None:
    from .. import api

    modes = [name for name in ("choices", "questions", "tasks") if getattr(options, name)]
    if len(modes) > 1:
        raise InputError(f"--{modes[0]} and --{modes[1]} are two evaluations: give one of them")
    with show_progress():
        model = api.load(
            options.run, options.device, weights=options.weights, recipe=options.recipe, store=options.store
        )
        if modes:
            return ask_tasks(model, options) if modes == ["tasks"] else ask_questions(model, options)
        metrics = model.evaluate(options.data) | (model.score(options.data) if options.scores else {})
    data = options.data or model.config.data
    if options.json:
        print(json.dumps(metrics | {"run": str(options.run), "step": model.step, "data": data}))
        return
    print(f"{options.run} at step {model.step}, on {data}")
    for name, value in metrics.items():
        text = f"{value:,.4f}" if isinstance(value, float) else value if isinstance(value, str) else f"{value:,}"
        print(f"  {name.replace('_', ' '):<14} {text}")


def ask_questions(model: "Model", options: Command) -> None:
    from ..evaluation.few_shot import FewShotOptions, ask_questions, draw_curve
    from ..evaluation.questions import TEMPLATE
    from ..evaluation.report import write_evaluation
    from ..training.run_directory import require_unused_folder

    template = TEMPLATE if options.template is None else options.template.replace("\\n", "\n")
    names = ("shots", "examples", "limit", "tokens", "seed")
    settings = FewShotOptions(template=template, **{name: getattr(options, name) for name in names})
    file = options.choices or options.questions
    assert file is not None
    if options.out is not None:
        require_unused_folder(options.out)
    result = ask_questions(model, file, options.choices is not None, settings)
    if options.out is not None:
        write_evaluation(options.out, result, draw_curve(result), {"run": str(options.run), "questions": str(file)})
    if options.json:
        values = {name: value for name, value in result.items() if name != "items"}
        print(json.dumps(values | {"run": str(options.run), "file": str(file)}))
        return
    chance = f", chance {result['chance']:.1%}" if result["chance"] else ""
    print(f"{options.run} at step {model.step}: {result['questions']:,} questions of {file}{chance}")
    print(format_columns([["examples", "accuracy", "95 %", "normalized", "95 %"], *map(format_point, result["curve"])]))
    for point in result["curve"]:
        if point["cut_prompts"]:
            shots, n = point["shots"], point["cut_prompts"]
            print_status(f"{shots} examples: {n:,} prompts exceed the context, and their beginning is not read")


def format_point(point: dict[str, Any]) -> list[str]:
    cells = [str(point["shots"])]
    for prefix in ("", "normalized_"):
        cells.append(f"{point[prefix + 'accuracy']:.1%}")
        cells.append(f"{point[prefix + 'low']:.1%} to {point[prefix + 'high']:.1%}")
    return cells


def ask_tasks(model: "Model", options: Command) -> None:
    from ..evaluation.harness import run_tasks

    if len(options.shots) > 1:
        raise InputError("--shots takes one number with --tasks")
    shots = options.shots[0] if options.shots != (0,) else None  # the task's own number
    results = run_tasks(model, options.tasks, shots, options.limit, options.seed)
    if options.json:
        print(json.dumps({"tasks": results, "run": str(options.run)}))
        return
    print(f"{options.run} at step {model.step}")
    rows = [
        [task, name, f"{v:.4f}" if isinstance(v, float) else str(v)]
        for task, vs in results.items()
        for name, v in vs.items()
    ]
    print(format_columns(rows, right={2}))
