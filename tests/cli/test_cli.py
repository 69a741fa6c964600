"""The command line: one JSON object on stdout and nothing else there, flags that arrive, runs that are resumed."""

import gzip
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from anyformer.cli.train import describe_seconds
from anyformer.data.registry import list_data_sets
from anyformer.recipe_loading import list_recipes
from anyformer.report import doctor
from anyformer.report.progress import Progress
from anyformer.training.config import TrainConfig
from cli_kit import SHORT, TINY, assert_refused, call, nothing_changes, train

QUICK = {
    "test_every_tokenizer_from_training_to_sample": {"byte", "bpe"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


def read_weights(run: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in run.glob("checkpoints/step-*/model.safetensors")}


def read_config(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


# --- train ---


def test_train_prints_one_json_object(text: Path, tmp_path: Path):
    run = tmp_path / "a run"
    result = train(text, run, "--json")
    assert result.json.keys() >= {"run", "step", "val_loss", "seconds"}
    assert result.json["run"] == str(run) and result.json["step"] == 4
    assert "step 4/4" in result.err, "progress goes to stderr"
    metrics = call("eval", run, "--json").ok().json
    assert metrics["loss"] == result.json["val_loss"]


def test_train_ends_with_a_sample_and_what_to_do_next(text: Path, tmp_path: Path):
    result = train(text, tmp_path / "a run", "--train.eval-batches", 1)
    sample = (tmp_path / "a run" / "samples.txt").read_text().split("--- step 4 ---\n")[1]
    assert result.out.strip() == sample.strip()
    lines = result.err.splitlines()
    loss = json.loads((tmp_path / "a run" / "result.json").read_text())["val_loss"]
    assert f"validation loss {loss:.4f} over the whole split, best checkpoint (step 4)" in lines
    during = json.loads((tmp_path / "a run" / "metrics.jsonl").read_text().splitlines()[-1])["val_loss"]
    assert f"while training, val {during:.3f} at the last step was measured on one batch of it" in lines
    assert f"sample  anyformer sample '{tmp_path / 'a run'}' --prompt TEXT" in lines, "commands are quoted"
    assert "can be exported to hf, onnx; not to gguf (--dry-run says why)" in lines


def test_a_run_is_a_directory_of_known_files(run: Path):
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "samples.txt", "report.html", "result.json", "checkpoints"}
    assert (run / "checkpoints" / "step-4" / "model.safetensors").is_file()
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]
    config = read_config(run)
    assert config["preset"] == "tiny" and config["command"].startswith("anyformer train language --preset tiny")


def test_runs_without_a_name_are_numbered(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    runs = [call(*TINY, "--data", "text.txt", "--steps", 1, "--json").ok().json["run"] for _ in range(2)]
    assert runs == ["runs/language-text-1", "runs/language-text-2"]


def test_every_flag_lands_in_the_config(text: Path, tmp_path: Path):
    flags = "--model.n-head 4 --train.lr 1e-3 --train.eval_every 5 --train.save-every 2 --steps 3 --seed 7 --no-compile"
    values = call(*TINY, "--data", text, *flags.split(), "--train.batch", 4, "--print-config").ok().out
    config = json.loads(values)["config"]
    assert config["model"]["n_head"] == 4 and config["data"] == str(text)
    expected = {"lr": 1e-3, "eval_every": 5, "save_every": 2, "steps": 3, "seed": 7, "batch": 4, "device": "cpu"}
    assert config["train"].items() >= (expected | {"dtype": "float32"}).items()


@pytest.mark.parametrize("short", ["steps", "seed", "device", "dtype"])
def test_a_shortcut_is_the_long_flag(short: str):
    value = {"steps": 9, "seed": 9, "device": "cpu", "dtype": "bfloat16"}[short]
    both = [call("train", "language", f"--{dot}{short}", value, "--print-config") for dot in ("", "train.")]
    assert both[0] == both[1] and json.loads(both[0].out)["config"]["train"][short] == value


@pytest.mark.parametrize("flag", ["--print-config", "--dry-run", "--help", "--help-all"])
def test_flags_that_train_nothing(text: Path, tmp_path: Path, flag: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with nothing_changes(tmp_path):
        assert call(*TINY, "--data", text, "--out", "run", flag).ok().out


def test_a_dry_run_tells_what_training_would_take(text: Path):
    facts = call(*TINY, "--data", text, "--dry-run", "--json").ok().json
    assert facts["parameters"] > 0 and facts["flops"] == 20 * facts["flops_per_step"] > 0
    assert facts["memory_bytes"]["total"] > 4 * facts["memory_bytes"]["weights"] > 0
    assert facts["batch"]["ids"] == {"shape": [8, 32], "dtype": "int64"}
    larger = call(*TINY, "--data", text, "--dry-run", "--json", "--model.n-layer", 4).ok().json
    assert larger["parameters"] > facts["parameters"] and larger["flops"] > facts["flops"]
    text_output = call(*TINY, "--data", text, "--dry-run").ok().out
    assert "can be exported to hf, onnx; not to gguf (" in text_output and "--preset gpt2" in text_output


@pytest.mark.slow
def test_a_dry_run_of_several_processes(text: Path):
    several = (*TINY, "--data", text, "--dry-run", "--processes", 2, "--train.accumulate", 2)
    copies, shares = (
        call(*several, "--json", "--train.shard", shard).ok().json["memory_bytes"]["weights"] for shard in (1, 2)
    )
    assert shares == copies / 2
    assert "MB at the peak of a step in each of 2 processes" in call(*several).ok().out
    assert_refused(call(*several, "--train.shard", 3), "--train.shard 3 does not divide the number of processes, 2")


# --- resume ---


def test_a_resumed_run_equals_an_uninterrupted_one(text: Path, tmp_path: Path):
    settings = ["--train.warmup", 8, "--train.schedule", "trapezoid", "--steps"]
    full = train(text, tmp_path / "uninterrupted", *settings, 8, "--json")
    train(text, tmp_path / "part", *settings, 4)  # the learning rate of the first steps does not depend on the number
    result = call("train", "language", "--out", tmp_path / "part", "--resume", "--steps", 8, "--json").ok()
    assert "from step 4" in result.err and result.json["val_loss"] == full.json["val_loss"]
    assert read_weights(tmp_path / "part")["step-8"] == read_weights(tmp_path / "uninterrupted")["step-8"]
    assert read_config(tmp_path / "part")["config"]["train"]["steps"] == 8


def test_resuming_a_finished_run_changes_no_weights(run: Path):
    before = read_weights(run)
    result = call("train", "language", "--out", run, "--resume", "--json").ok()
    assert result.json["step"] == 4 and read_weights(run) == before
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


def test_resuming_a_run_that_does_not_exist_starts_it(text: Path, tmp_path: Path):
    train(text, tmp_path / "new", "--resume")
    train(text, tmp_path / "plain")
    assert read_weights(tmp_path / "new") == read_weights(tmp_path / "plain")


def test_ctrl_c_saves_and_prints_how_to_resume(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train(text, tmp_path / "uninterrupted", "--steps", 8, "--train.save-every", 100)
    real = Progress.update

    def update(self: Progress, record: dict) -> None:
        real(self, record)
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", update)
    out = tmp_path / "a run"  # a space, so that the command must be quoted
    result = call(*TINY, "--data", text, "--out", out, *SHORT, "--steps", 8, "--train.save-every", 100, "--json")
    assert result.code == 1 and result.out == "" and "Traceback" not in result.err
    last = result.err.splitlines()[-1]
    assert "stopped at step " in last and "everything is saved" in last
    monkeypatch.undo()
    command = shlex.split(last.split("Go on with: ")[1])
    assert command[0] == "anyformer"
    call(*command[1:]).ok()
    assert read_weights(out)["step-8"] == read_weights(tmp_path / "uninterrupted")["step-8"]


# --- sample ---


def test_sample_prints_one_json_object(run: Path):
    flags = ("--tokens", 12, "--samples", 2, "--seed", 3, "--json")
    result = call("sample", run, "--prompt", "the ", *flags).ok()
    assert len(result.json["samples"]) == 2 and result.err == ""
    for sample in result.json["samples"]:
        assert sample.keys() == {"prompt", "text", "tokens", "finish_reason"}
        assert sample["prompt"] == "the " and sample["finish_reason"] in ("length", "stop")
        assert len(sample["text"]) == len(sample["tokens"]) <= 12, "text is the continuation alone"
    assert call("sample", run, "--prompt", "the ", *flags) == result


def test_each_prompt_of_a_batch_is_continued_as_if_alone(run: Path):
    flags = ("--tokens", 10, "--json")
    both = call("sample", run, "--prompt", "the cat", "--prompt", "on", *flags).ok().json["samples"]
    alone = [call("sample", run, "--prompt", p, *flags).ok().json["samples"][0] for p in ("the cat", "on")]
    assert both == alone


def test_a_prompt_comes_from_a_file_or_stdin(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "prompt.txt").write_text("the dog")
    flags = ("--tokens", 10, "--json")
    direct = call("sample", run, "--prompt", "the dog", *flags).ok()
    assert call("sample", run, "--prompt-file", tmp_path / "prompt.txt", *flags) == direct
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the dog")))
    assert call("sample", run, "--prompt", "-", *flags) == direct


def test_temperature_zero_ignores_the_seed_and_a_stop_text_ends(run: Path):
    flags = ("sample", run, "--prompt", "the", "--tokens", 20, "--temperature", 0, "--json")
    first, second = (call(*flags, "--seed", seed).ok().json["samples"] for seed in (0, 1))
    assert first == second
    word = first[0]["text"][3:5]
    stopped = call(*flags, "--stop", word).ok().json["samples"][0]
    assert stopped["text"] == first[0]["text"].split(word)[0] and stopped["finish_reason"] == "stop"


def test_a_sample_is_shown_behind_its_prompt(run: Path):
    flags = ("--prompt", "the cat", "--tokens", 9)
    sample = call("sample", run, *flags, "--json").ok().json["samples"][0]
    result = call("sample", run, *flags).ok()
    assert result.out == f"the cat{sample['text']}\n" and " tokens (" in result.err


# --- eval ---


def test_eval_is_a_fixed_pass_over_the_validation_split(run: Path, text: Path):
    result = call("eval", run, "--json").ok()
    assert result.json.keys() >= {"loss", "perplexity", "bits_per_byte", "tokens"}
    assert result.json["tokens"] == len(text.read_text()) // 10 - 1, "each token of the split but the first"
    assert call("eval", run, "--json") == result
    assert call("eval", run / "checkpoints" / "step-4", "--json").json["loss"] == result.json["loss"]
    assert "perplexity" in call("eval", run).ok().out


def test_eval_uses_all_of_other_data(run: Path, text: Path, tmp_path: Path):
    own = call("eval", run, "--json").ok().json["tokens"]
    copy, other = tmp_path / "copy.txt", tmp_path / "other.txt"
    copy.write_bytes(text.read_bytes())
    other.write_text("the dog sat on the cat.\n" * 9)
    for data, tokens in ((text, own), (copy, own), (other, 9 * 24 - 1)):  # a copy is the training text, too
        assert call("eval", run, "--data", data, "--json").ok().json["tokens"] == tokens


# --- data and tokenizers, end to end ---


@pytest.mark.parametrize("kind", ["byte", "bpe", "file"])
def test_every_tokenizer_from_training_to_sample(text: Path, tmp_path: Path, kind: str):
    flags = {"byte": ("--tokenizer", "byte"), "bpe": ("--tokenizer", "bpe", "--vocab-size", 270)}
    flags["file"] = ("--tokenizer", tmp_path / "own.json")
    if kind == "file":
        train(text, tmp_path / "first", *flags["bpe"])
        (tmp_path / "own.json").write_bytes((tmp_path / "first/checkpoints/step-4/tokenizer.json").read_bytes())
    loss = train(text, tmp_path / "run", *flags[kind], "--json").json["val_loss"]
    (tmp_path / "own.json").unlink(missing_ok=True)  # the checkpoint has its own
    if kind != "file":
        assert call("eval", tmp_path / "run", "--json").ok().json["loss"] == loss
    sample = call("sample", tmp_path / "run", "--prompt", "Ünï 🌞 the", "--tokens", 8, "--json").ok().json
    assert sample["samples"][0]["prompt"] == "Ünï 🌞 the" and len(sample["samples"][0]["tokens"]) <= 8


def test_gzip_json_lines_and_folders(text: Path, tmp_path: Path):
    plain = train(text, tmp_path / "plain", "--json").json
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    assert train(packed, tmp_path / "packed", "--json").json["val_loss"] == plain["val_loss"]
    lines = tmp_path / "lines.jsonl.gz"
    documents = [json.dumps({"text": line}) for line in text.read_text().splitlines()]
    lines.write_bytes(gzip.compress("\n".join(documents).encode()))
    characters = sum(map(len, text.read_text().splitlines())) + len(documents) - 1  # and an end between two
    tokens = train(lines, tmp_path / "lines", "--json").json["val_tokens"]
    assert tokens == characters - int(characters * 0.9) - 1
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.md"):
        (folder / name).write_bytes(text.read_bytes())
    tokens = train(folder, tmp_path / "run-folder", "--json").json["val_tokens"]
    assert tokens == pytest.approx(2 * plain["val_tokens"], abs=3)


# --- list, doctor, and the entry point ---


def test_list_names_every_recipe_preset_and_data_set():
    facts = call("list", "--json").ok().json
    assert [recipe["name"] for recipe in facts["recipes"]] == list_recipes()
    language = next(recipe for recipe in facts["recipes"] if recipe["name"] == "language")
    assert {"tiny", "nanogpt-cpu", "nanogpt-gpu", "gpt2"} <= language["presets"].keys()
    assert language["default"] in language["presets"] and language["presets"]["gpt2"]["parameters"] > 84e6
    assert language["presets"]["gpt2"]["exports"] == ["hf", "gguf", "onnx"]
    names = {data["name"] for data in facts["data"]}
    assert names >= {data.name for data in list_data_sets()}
    assert names >= {"cartpole", "pendulum", "line", "tones", "reverse", "spoken-digits", "sensors", "plays"}
    assert all(data.keys() >= {"about", "licence", "from"} for data in facts["data"])
    presets = [preset for recipe in facts["recipes"] for preset in recipe["presets"].values()]
    assert {preset["data"] for preset in presets if "." not in preset["data"]} <= names
    text = call("list").ok().out
    assert "anyformer train language" in text and "plays" in text and "(default)" in text


def test_doctor_prints_what_it_measured(monkeypatch: pytest.MonkeyPatch):
    facts = {"devices": [{"device": "cpu"}]}
    monkeypatch.setattr(doctor, "examine", lambda: facts)
    result = call("doctor", "--json").ok()
    assert result.json == facts and "measuring" in result.err


def test_the_entry_point():
    assert call("--help").out == call("help").out == call("-h").ok().out
    assert call("--version").ok().out.strip()[0].isdigit()
    assert call().code == 2 and call("train").code == 2, "no arguments: the help, and not a success"
    assert "recipes: " in call("train", "--help").ok().out


def test_the_command_itself(run: Path):
    """A real process: stdout is the answer alone."""
    command = [sys.executable, "-m", "anyformer", "sample", str(run), "--prompt", "-", "--tokens", "5", "--json"]
    result = subprocess.run(command, input="the cat", capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0 and result.stderr == ""
    assert json.loads(result.stdout)["samples"][0]["prompt"] == "the cat"


def test_a_training_that_stops_early_says_so():
    config = SimpleNamespace(train=TrainConfig(patience=5, eval_every=10))
    result = {"seconds": 12.0, "minutes": 0.5, "step": 140, "best_step": 90}
    line = describe_seconds(result, config)
    assert line.startswith(
        "trained in 12 s of the 30 s of --minutes; stopped early at step 140: the last 5 validations"
    )
    assert "step 90" in line and "--train.patience 0" in line
    assert describe_seconds(result | {"best_step": 100}, config) == "trained in 12 s of the 30 s of --minutes"
