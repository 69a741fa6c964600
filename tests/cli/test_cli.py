"""The command line: one JSON object on stdout and nothing else there, flags that arrive, runs that go on."""

import gzip
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anyformer import cli
from anyformer.report import doctor
from anyformer.report.progress import Progress
from cli_kit import SHORT, TINY, call, nothing_changes, train


def weights(run: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in run.glob("checkpoints/step-*/model.safetensors")}


# --- train ---


def test_train_answers_with_one_json_object(text: Path, tmp_path: Path):
    said = train(text, tmp_path / "run", "--json")
    assert said.json.keys() >= {"run", "step", "val_loss", "seconds"}
    assert said.json["run"] == str(tmp_path / "run") and said.json["step"] == 4
    assert "step 4/4" in said.err, "progress goes to stderr"
    found = call("eval", tmp_path / "run", "--json").ok().json
    assert found["loss"] == said.json["val_loss"]


def test_train_ends_with_a_sample_and_the_run(text: Path, tmp_path: Path):
    said = train(text, tmp_path / "run")
    shown = (tmp_path / "run" / "samples.txt").read_text().split("--- step 4 ---\n")[1]
    assert said.out.strip() == shown.strip()
    assert f"run     {tmp_path / 'run'}\n" in said.err and "report.html" in said.err


def test_a_run_is_a_directory_of_known_files(run: Path):
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "samples.txt", "report.html", "result.json", "checkpoints"}
    assert (run / "checkpoints" / "step-4" / "model.safetensors").is_file()
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]
    described = json.loads((run / "config.json").read_text())
    assert described["preset"] == "tiny" and described["command"].startswith("anyformer train language --preset tiny")


def test_runs_without_a_name_are_numbered(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    runs = [call(*TINY, "--data", "text.txt", "--steps", 1, "--json").ok().json["run"] for _ in range(2)]
    assert runs == ["runs/language-text-1", "runs/language-text-2"]


def test_every_flag_lands_in_the_config(text: Path, tmp_path: Path):
    flags = "--model.n-head 4 --train.lr 1e-3 --train.eval-every 5 --train.save-every 2 --steps 3 --seed 7"
    call(*TINY, "--data", text, "--out", tmp_path / "run", *flags.split(), "--train.batch", 4).ok()
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["model"]["n_head"] == 4 and config["data"] == str(text)
    wanted = {"lr": 1e-3, "eval_every": 5, "save_every": 2, "steps": 3, "seed": 7, "batch": 4, "device": "cpu"}
    assert config["train"].items() >= (wanted | {"dtype": "float32"}).items()


@pytest.mark.parametrize("short", ["steps", "seed", "device", "dtype"])
def test_a_shortcut_is_the_long_flag(short: str):
    value = {"steps": 9, "seed": 9, "device": "cpu", "dtype": "bfloat16"}[short]
    both = [call("train", "language", f"--{dot}{short}", value, "--print-config") for dot in ("", "train.")]
    assert both[0] == both[1] and json.loads(both[0].out)["config"]["train"][short] == value


@pytest.mark.parametrize("flag", ["--print-config", "--dry-run", "--help"])
def test_asking_trains_nothing(text: Path, tmp_path: Path, flag: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    with nothing_changes(tmp_path):
        if flag == "--help":
            with pytest.raises(SystemExit) as left:
                cli.run([*TINY, flag])
            assert left.value.code == 0
            helped = capsys.readouterr().out
            assert "--model.n-head" in helped and "--train.save-every" in helped and "--data" in helped
        else:
            assert call(*TINY, "--data", text, "--out", "run", flag).ok().out


def test_a_dry_run_tells_what_it_would_take(text: Path):
    facts = call(*TINY, "--data", text, "--dry-run", "--json").ok().json
    assert facts["parameters"] > 0 and facts["flops"] == 20 * facts["flops_per_step"] > 0
    assert facts["memory_bytes"]["total"] > 4 * facts["memory_bytes"]["weights"] > 0
    assert facts["batch"]["ids"] == {"shape": [8, 32], "dtype": "int64"}
    larger = call(*TINY, "--data", text, "--dry-run", "--json", "--model.n-layer", 4).ok().json
    assert larger["parameters"] > facts["parameters"] and larger["flops"] > facts["flops"]


# --- going on ---


def test_resume_goes_on_as_if_never_stopped(text: Path, tmp_path: Path, run: Path):
    whole = train(
        text, tmp_path / "whole", "--steps", 8, "--train.warmup", 8, "--train.schedule", "trapezoid", "--json"
    )
    part = ["--train.warmup", 8, "--train.schedule", "trapezoid", "--steps"]
    train(text, tmp_path / "part", *part, 4)
    # the rate of the first steps is the same whatever comes after, so the longer run is the shorter one gone on with
    said = call("train", "language", "--out", tmp_path / "part", "--resume", "--steps", 8, "--json").ok()
    assert "from step 4" in said.err and said.json["val_loss"] == whole.json["val_loss"]
    assert weights(tmp_path / "part")["step-8"] == weights(tmp_path / "whole")["step-8"]
    assert json.loads((tmp_path / "part" / "config.json").read_text())["config"]["train"]["steps"] == 8


def test_resuming_a_finished_run_is_fine(run: Path):
    before = weights(run)
    said = call("train", "language", "--out", run, "--resume", "--json").ok()
    assert said.json["step"] == 4 and weights(run) == before
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


def test_resuming_what_is_not_there_begins_it(text: Path, tmp_path: Path):
    train(text, tmp_path / "new", "--resume")
    train(text, tmp_path / "plain")
    assert weights(tmp_path / "new") == weights(tmp_path / "plain")


def test_ctrl_c_saves_and_says_how_to_go_on(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train(text, tmp_path / "whole", "--steps", 8, "--train.save-every", 100)
    real = Progress.update

    def update(self: Progress, record: dict) -> None:
        real(self, record)
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", update)
    out = tmp_path / "a run"  # a space, so that the command must be quoted
    said = call(*TINY, "--data", text, "--out", out, *SHORT, "--steps", 8, "--train.save-every", 100, "--json")
    assert said.code == 1 and said.out == "" and "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert "stopped at step " in last and "everything is saved" in last
    monkeypatch.undo()
    command = shlex.split(last.split("Go on with: ")[1])
    assert command[0] == "anyformer"
    call(*command[1:]).ok()
    assert weights(out)["step-8"] == weights(tmp_path / "whole")["step-8"]


# --- sample ---


def test_sample_answers_with_one_json_object(run: Path):
    said = call("sample", run, "--prompt", "the ", "--tokens", 12, "--samples", 2, "--seed", 3, "--json").ok()
    assert len(said.json["samples"]) == 2
    for sample in said.json["samples"]:
        assert sample.keys() == {"prompt", "text", "tokens", "finish_reason"}
        assert sample["prompt"] == "the " and sample["finish_reason"] in ("length", "stop")
        assert len(sample["text"]) == len(sample["tokens"]) <= 12, "text is the continuation alone"
    assert said.err == ""
    again = call("sample", run, "--prompt", "the ", "--tokens", 12, "--samples", 2, "--seed", 3, "--json")
    assert again == said


def test_several_prompts_are_answered_each_as_if_alone(run: Path):
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
    says = [
        call("sample", run, "--prompt", "the", "--tokens", 20, "--temperature", 0, "--seed", s, "--json").ok()
        for s in (0, 1)
    ]
    first = says[0].json["samples"]
    assert first == says[1].json["samples"]
    word = first[0]["text"][3:5]
    flags = ("--tokens", 20, "--temperature", 0, "--stop", word, "--json")
    stopped = call("sample", run, "--prompt", "the", *flags).ok().json["samples"][0]
    assert stopped["text"] == first[0]["text"].split(word)[0] and stopped["finish_reason"] == "stop"


def test_a_person_sees_the_prompt_and_its_continuation(run: Path):
    flags = ("--prompt", "the cat", "--tokens", 9)
    sample = call("sample", run, *flags, "--json").ok().json["samples"][0]
    said = call("sample", run, *flags).ok()
    assert said.out == f"the cat{sample['text']}\n" and " tokens (" in said.err


# --- eval ---


def test_eval_is_a_fixed_pass_over_the_validation_split(run: Path, text: Path):
    found = call("eval", run, "--json").ok()
    assert found.json.keys() >= {"loss", "perplexity", "bits_per_byte", "tokens"}
    assert found.json["tokens"] == len(text.read_text()) // 10 - 1, "each token of the split but the first"
    assert call("eval", run, "--json") == found
    assert call("eval", run / "checkpoints" / "step-4", "--json").json["loss"] == found.json["loss"]
    assert "perplexity" in call("eval", run).ok().out


def test_eval_takes_other_data_whole(run: Path, text: Path, tmp_path: Path):
    own = call("eval", run, "--json").ok().json
    assert call("eval", run, "--data", text, "--json").ok().json["tokens"] == own["tokens"]
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text.read_bytes())
    assert call("eval", run, "--data", copy, "--json").ok().json["tokens"] == own["tokens"], "the same text is known"
    other = tmp_path / "other.txt"
    other.write_text("the dog sat on the cat.\n" * 9)
    assert call("eval", run, "--data", other, "--json").ok().json["tokens"] == 9 * 24 - 1


# --- data and tokenizers, end to end ---


@pytest.mark.parametrize("kind", ["byte", "bpe", "file"])
def test_every_tokenizer_from_training_to_sample(text: Path, tmp_path: Path, kind: str):
    flags = {"byte": ("--tokenizer", "byte"), "bpe": ("--tokenizer", "bpe", "--vocab-size", 270)}
    flags["file"] = ("--tokenizer", tmp_path / "own.json")
    if kind == "file":
        train(text, tmp_path / "first", *flags["bpe"])
        (tmp_path / "own.json").write_bytes((tmp_path / "first/checkpoints/step-4/tokenizer.json").read_bytes())
    trained = train(text, tmp_path / "run", *flags[kind], "--json").json
    (tmp_path / "own.json").unlink(missing_ok=True)  # the checkpoint has its own
    if kind != "file":
        assert call("eval", tmp_path / "run", "--json").ok().json["loss"] == trained["val_loss"]
    sample = call("sample", tmp_path / "run", "--prompt", "Ünï 🌞 the", "--tokens", 8, "--json").ok().json
    assert sample["samples"][0]["prompt"] == "Ünï 🌞 the" and len(sample["samples"][0]["tokens"]) <= 8


def test_lines_of_json_and_gzip(text: Path, tmp_path: Path):
    plain = train(text, tmp_path / "plain", "--json").json
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    assert train(packed, tmp_path / "packed", "--json").json["val_loss"] == plain["val_loss"]
    lines = tmp_path / "lines.jsonl.gz"
    documents = [json.dumps({"text": line}) for line in text.read_text().splitlines()]
    lines.write_bytes(gzip.compress("\n".join(documents).encode()))
    found = train(lines, tmp_path / "lines", "--json").json
    characters = sum(map(len, text.read_text().splitlines())) + len(documents) - 1  # and an end between two
    assert found["val_tokens"] == characters - int(characters * 0.9) - 1


def test_a_folder_is_all_its_files(text: Path, tmp_path: Path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.md"):
        (folder / name).write_bytes(text.read_bytes())
    one, two = (train(data, tmp_path / f"run-{data.stem}", "--json").json["val_tokens"] for data in (text, folder))
    assert two == pytest.approx(2 * one, abs=3)


# --- list, doctor, and the door ---


def test_list_names_all_there_is():
    facts = call("list", "--json").ok().json
    language = next(recipe for recipe in facts["recipes"] if recipe["name"] == "language")
    assert {"tiny", "nanogpt-cpu", "nanogpt-gpu", "gpt2"} <= language["presets"].keys()
    assert language["default"] in language["presets"] and language["presets"]["gpt2"]["parameters"] > 84e6
    plays = next(data for data in facts["data"] if data["name"] == "plays")
    assert plays.keys() >= {"about", "licence", "from"}
    told = call("list").ok().out
    assert "anyformer train language" in told and "plays" in told and "(default)" in told


def test_doctor_tells_what_it_measured(monkeypatch: pytest.MonkeyPatch):
    facts = {"devices": [{"device": "cpu"}]}
    monkeypatch.setattr(doctor, "examine", lambda: facts)
    said = call("doctor", "--json").ok()
    assert said.json == facts and "measuring" in said.err


def test_the_door():
    assert call("--help").out == call("help").out == call("-h").ok().out
    assert call("--version").ok().out.strip()[0].isdigit()
    assert call().code == 2 and call("train").code == 2, "nothing asked: the help, and not a success"
    assert "recipes: " in call("train", "--help").ok().out


def test_the_command_itself(run: Path):
    """A real process: stdout is the answer alone, and whoever reads it may go away."""
    command = [sys.executable, "-m", "anyformer", "sample", str(run), "--prompt", "-", "--tokens", "5", "--json"]
    done = subprocess.run(command, input="the cat", capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout)["samples"][0]["prompt"] == "the cat"
