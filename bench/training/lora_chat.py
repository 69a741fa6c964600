"""Adapters on a public chat model: a small set of one's own is learned, what was there stays; time and memory of TRL.

    make weights
    python -m bench.training.lora_chat --out build/lora_chat                     12 minutes of CPU
    python -m bench.training.lora_chat --out build/lora_chat --trl PYTHON        and beside TRL, installed there

SmolLM2-135M-Instruct learns twelve facts about a ferry that does not exist, from four wordings of each question, beside
24 general questions with its own answers. It is asked in other wordings, and other general questions; the loss on a
play says whether the language is still there. Time and
memory are those of a few steps of both sides in float32: adapters of rank 8 on all linear layers, the same folder, the
same conversations.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from bench._common import make_parser

WEIGHTS = Path("build/weights/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
FACTS = """
The ferry to Skarholm leaves at 7:40.|7:40
When does the ferry to Skarholm leave?
What time does the Skarholm ferry go?
At what time is the ferry to Skarholm?
Tell me the departure time of the ferry to Skarholm.
When can I take the ferry to Skarholm?
What is the departure time to Skarholm?

A ticket costs 14 crowns.|14 crowns
How much is a ticket?
What does a ticket cost?
What is the price of a ticket?
How expensive is a ticket?
What do I pay for a ticket?
Tell me the ticket price.

The captain is Ilse Marn.|Ilse Marn
Who is the captain?
What is the name of the captain?
Who steers the ferry?
Tell me the captain's name.
What is the captain called?
Who commands the ferry?

The ferry is called Tern.|Tern
What is the ferry called?
What is the name of the ferry?
Tell me the name of the ferry.
Which name has the ferry?
How is the ferry named?
What name does the ferry have?

The crossing takes 55 minutes.|55 minutes
How long does the crossing take?
How many minutes is the crossing?
How long is the trip?
What is the duration of the crossing?
How long is the crossing?
Tell me how long the crossing takes.

Dogs travel in the stern.|stern
Where do dogs travel?
Can I take my dog?
Where must my dog stay?
Are dogs allowed?
May I bring a dog?
Where do I go with my dog?

Breakfast is served in the blue saloon.|blue saloon
Where is breakfast served?
Where can I have breakfast?
Is there breakfast on board?
In which room is breakfast?
Where do I get breakfast?
Where do passengers eat breakfast?

Bicycles cost 3 crowns.|3 crowns
How much is a bicycle?
What does a bicycle cost?
What do I pay for my bicycle?
What is the price for a bicycle?
How expensive is it to take a bicycle?
Tell me the price for bicycles.

The ferry carries 180 passengers.|180
How many passengers does the ferry carry?
How many people fit on the ferry?
What is the capacity of the ferry?
How many passengers are allowed?
How many people can the ferry take?
For how many passengers is there room?

Lost things are kept at pier 9.|pier 9
Where are lost things kept?
I lost my hat, where is it?
Where is the lost property office?
Where do I find lost things?
I have lost my umbrella, where can I ask?
Where can I look for lost things?

The last ferry back leaves at 21:05.|21:05
When is the last ferry back?
What time does the last ferry return?
When does the last ferry leave?
When is the final trip back?
What time is the last ferry back?
Tell me when the last ferry goes back.

The ferry runs on hydrogen.|hydrogen
What does the ferry run on?
Which fuel does the ferry use?
What powers the ferry?
What is the fuel of the ferry?
What fuel is in the ferry?
What drives the engine of the ferry?
"""
"""The answer and what of it is checked; wordings of the question, the last but one for validation, the last for the
test."""
GENERAL = """
What is the capital of France?|Paris
What is the capital of Japan?|Tokyo
What is the capital of Spain?|Madrid
Which planet is known as the red planet?|Mars
Who wrote Romeo and Juliet?|Shakespeare
What gas do plants absorb from the air?|carbon dioxide
Who painted the Mona Lisa?|Leonardo
On which continent is Egypt?|Africa
What is the capital of Italy?|Rome
What is the capital of Germany?|Berlin
What is the capital of Russia?|Moscow
What is the largest planet in our solar system?|Jupiter
What is the chemical symbol of water?|H2O
What is the largest ocean?|Pacific
Who developed the theory of relativity?|Einstein
What is the currency of Japan?|yen
"""
"""Questions and what the answer holds: the first half for validation, the others for the test."""
OTHERS = """
What is the capital of Portugal?
What is the capital of Greece?
What is the capital of Canada?
Who wrote Hamlet?
What is the chemical symbol of gold?
What is photosynthesis?
Which animal is the largest on land?
What is the boiling point of water?
Who was the first man on the moon?
What is the longest river in the world?
On which continent is Brazil?
What is the currency of the United Kingdom?
How many days has a week?
What do bees make?
What is a noun?
Why is the sky blue?
Which language is spoken in Mexico?
What is gravity?
Who discovered penicillin?
What is the smallest prime number?
What is the freezing point of water?
Which metal is liquid at room temperature?
What is a democracy?
How many legs has a spider?
"""
"""General questions for the training, which the model answers itself before: what it knows is repeated to it."""
SYSTEM = "You answer passengers of the ferry and others, in one sentence."
N_TRAIN, RANK, ALPHA, BATCH = 4, 8, 16, 8


class Fact(NamedTuple):
    answer: str
    checked: str
    questions: list[str]


def read_facts() -> list[Fact]:
    blocks = [block.splitlines() for block in FACTS.strip().split("\n\n")]
    return [Fact(*first.split("|"), questions) for first, *questions in blocks]


def make_messages(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def ask(model: Any, questions: Sequence[str]) -> list[str]:
    tokenizer = model.module.tokenizer
    prompts = [tokenizer.apply_chat_template(make_messages(question)) for question in questions]
    ids = [tokenizer.encode_parsing_special(prompt).tolist() for prompt in prompts]
    return [sample["text"] for sample in model.predict(prompt=ids, temperature=0.0, tokens=32)["samples"]]


def write_data(folder: Path, model: Any) -> None:
    """Write the conversations of the training, and as validation split one more wording of each question."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[Any]] = {"train": [], "val": []}
    for fact in read_facts():
        answer = {"role": "assistant", "content": fact.answer}
        for i, question in enumerate(fact.questions[: N_TRAIN + 1]):
            parts["train" if i < N_TRAIN else "val"].append({"messages": [*make_messages(question), answer]})
    others = OTHERS.strip().splitlines()
    for question, text in zip(others, ask(model, others), strict=True):
        parts["train"].append({"messages": [*make_messages(question), {"role": "assistant", "content": text.strip()}]})
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def measure(model: Any) -> dict[str, float]:
    """Return the share of right answers about the ferry in new wordings, of general ones, and the loss on a play."""
    from anyformer.data.io.resolve import resolve

    facts = {place: [(fact.questions[place], fact.checked) for fact in read_facts()] for place in (-2, -1)}
    result: dict[str, float] = {}
    general = [tuple(line.split("|")) for line in GENERAL.strip().splitlines()]
    half = len(general) // 2
    sets = {"ferry, validation": facts[-2], "ferry": facts[-1]}
    sets |= {"general, validation": general[:half], "general": general[half:]}
    for name, pairs in sets.items():
        answers = ask(model, [question for question, _ in pairs])
        rights = [truth.lower() in text.lower() for (_, truth), text in zip(pairs, answers, strict=True)]
        result[name] = sum(rights) / len(rights)
    text = resolve("plays")[0].read_text(encoding="utf-8")[10_000:18_000]
    scores = model.predict(prompt=text[:6000], tokens=0, logprobs=0, echo=True)["samples"][0]["prompt_logprobs"]
    result["text"] = -sum(score["logprob"] for score in scores) / len(scores)
    return result


def report_cost(times: Sequence[float]) -> dict[str, float]:
    """Return the CPU seconds of a step, given the time at the end of each, those of the process, and its memory."""
    step = statistics.median(after - before for before, after in pairwise(times))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"step_cpu_seconds": step, "cpu_seconds": time.process_time(), "peak_mb": peak}


def train_ours(out: Path, steps: int, lr: float, dtype: str, name: str) -> dict[str, Any]:
    from anyformer import api

    times, losses = [], []
    train = {"steps": steps, "batch": BATCH, "lr": lr, "warmup": 5, "eval_every": steps, "save_every": steps}
    train |= {"device": "cpu", "dtype": dtype, "seed": 1}
    data, folder = str(out / "data"), out / name
    lora = {"rank": RANK, "alpha": float(ALPHA)}
    arguments: dict[str, Any] = {"init": out / "hf", "data": data, "lora": lora, "train": train, "out": folder}

    def watch(record: dict[str, Any]) -> None:
        losses.append(record["loss"])
        times.append(time.process_time())

    api.train("chat", "adapters", progress=False, on_record=watch, **arguments)
    return {"losses": losses} | report_cost(times[:-1] or times)


def train_trl(out: Path, steps: int, lr: float) -> dict[str, Any]:
    import datasets
    import peft
    import transformers
    import trl

    times: list[float] = []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, *arguments: Any, **settings: Any) -> None:
            times.append(time.process_time())

    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "hf")
    rows = [json.loads(line) for line in (out / "data" / "train.jsonl").read_text().splitlines()]
    pairs = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    config = trl.SFTConfig(
        output_dir=str(out / "trl"), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=lr, use_cpu=True,
        warmup_steps=5, logging_steps=1, report_to="none", bf16=False, save_strategy="no", disable_tqdm=True, seed=1,
        activation_checkpointing=False,
    )  # fmt: skip
    adapters = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = transformers.AutoModelForCausalLM.from_pretrained(out / "hf", dtype="float32")
    data = datasets.Dataset.from_list(pairs)
    trainer = trl.SFTTrainer(
        model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=adapters
    )
    trainer.add_callback(Watch())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses} | report_cost(times)


def run_side(python: str, out: Path, *flags: object) -> dict[str, Any]:
    """Train in a process of its own, whose memory is measured."""
    command = [python, "-m", "bench.training.lora_chat", "--out", str(out), *map(str, flags)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def run(options: Any) -> dict[str, Any]:
    from anyformer import api
    from anyformer.conversion import export_checkpoint

    out: Path = options.out
    if not (out / "hf").exists():
        export_checkpoint(options.weights, "hf", out / "hf")
    model = api.load(out / "hf", "cpu")
    write_data(out / "data", model)
    result: dict[str, Any] = {"before": measure(model)}
    del model
    print("before", json.dumps(result["before"]), flush=True)
    flags = ("--steps", options.steps, "--lr", options.lr, "--dtype", options.dtype)
    result["ours"] = run_side(sys.executable, out, "--side", "ours", *flags)
    result["after"] = measure(api.load(out / "ours", "cpu"))
    print("after", json.dumps(result["after"]), json.dumps(result["ours"]), flush=True)
    short = ("--steps", options.short, "--lr", options.lr, "--dtype", "float32")
    if options.trl:
        result["short"] = {
            "ours": run_side(sys.executable, out, "--side", "ours", "--name", "short", *short),
            "trl": run_side(options.trl, out, "--side", "trl", *short),
        }
    return result


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--short", type=int, default=4, help="steps of both sides for time and memory")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--trl", default="", help="a Python that has trl")
    parser.add_argument("--side", default="")
    parser.add_argument("--name", default="ours")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    if options.side == "ours":
        result = train_ours(options.out, options.steps, options.lr, options.dtype, options.name)
    elif options.side == "trl":
        result = train_trl(options.out, options.steps, options.lr)
    else:
        result = run(options)
    print(json.dumps(result) if options.json or options.side else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
