"""Tokens in shards: what is written is what is read, windows are drawn exactly, the node's cache stays bounded."""

import contextlib
import json
import multiprocessing
import os
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.io import node_cache
from anyformer.data.text import shards as module
from anyformer.data.text.batches import LANES, eval_windows, select_windows, train_windows
from anyformer.data.text.prepare import prepare_corpus, write_shards
from anyformer.data.text.read import RowOptions
from anyformer.data.text.shards import ShardedTokens, corpus_files, holds_shards
from data_kit import SAMPLE, refuses, write
from hub_kit import Hub
from shard_kit import open_tokens, write_numbers

CONTEXT, SHARD = 16, 200


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test its own cache, and no waiting."""
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "WAITS", (0.0, 0.0))
    return tmp_path / "cache" / "shards"


def draw(tokens: ShardedTokens, step: int, batch: int = 4, accumulate: int = 1, seed: int = 0) -> np.ndarray:
    """Return the windows of a batch, (B, T + 1)."""
    ids, labels = train_windows(tokens, CONTEXT, batch, seed, step, accumulate=accumulate)
    assert ids.dtype == labels.dtype == np.int64 and (ids[:, 1:] == labels[:, :-1]).all()
    return np.concatenate([ids, labels[:, -1:]], 1)


def wait_for_prefetch(tokens: ShardedTokens) -> None:
    while (thread := tokens.reader._thread) is not None and thread.is_alive():
        thread.join()


def measure_folder(folder: Path) -> int:
    """Return the bytes of all files, while some are removed."""
    n_bytes = 0
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            n_bytes += path.stat().st_size
    return n_bytes


def list_cached(cache: Path) -> list[Path]:
    return [path for path in cache.glob("*/*") if not path.name.startswith(".")]


# --- what is written is what is read ---


@pytest.mark.parametrize("spec", ["char", "byte", "bpe"])
def test_shards_hold_the_tokens_of_the_whole_text(spec: str, tmp_path: Path):
    rows = [json.dumps({"text": text}) for text in (SAMPLE, "", SAMPLE[:30], SAMPLE[:30])]
    data = str(write(tmp_path / "rows.jsonl", "\n".join(rows)))
    for options in (RowOptions(), RowOptions(duplicates="skip")):
        expected = prepare_corpus(data, spec, 300, rows=options)
        folder = str(tmp_path / f"corpus-{options.duplicates}")
        index = write_shards(data, folder, spec, 300, rows=options, shard_tokens=70)
        corpus = prepare_corpus(folder)
        assert len(index.shards) == -(-len(expected.tokens) // 70) and max(n for n, _ in index.shards) == 70
        for split in ("train", "val", "all"):
            assert np.array_equal(np.asarray(corpus.split(split)), expected.split(split))
        assert corpus.tokenizer.to_json() == expected.tokenizer.to_json() and corpus.separator == expected.separator
        assert corpus.n_documents == expected.n_documents and corpus.n_train == expected.n_train


@given(start=st.integers(-70, 70), stop=st.none() | st.integers(-70, 70), inner=st.integers(0, 20))
def test_slices_are_those_of_an_array(
    tmp_path_factory: pytest.TempPathFactory, start: int, stop: int | None, inner: int
):
    folder = tmp_path_factory.getbasetemp() / "sliced"
    tokens = open_tokens(folder if folder.exists() else write_numbers(folder, 61, 7))
    expected = np.arange(61)[start:stop]
    assert len(tokens[start:stop]) == len(expected) and np.array_equal(tokens[start:stop], expected)
    assert np.array_equal(np.asarray(tokens[start:stop][inner:], np.int64), expected[inner:])


def test_validation_reads_all_windows_in_order(numbers: str):
    tokens, expected = open_tokens(numbers), np.arange(3000)
    for batches in zip(eval_windows(tokens[2700:], CONTEXT, 4), eval_windows(expected[2700:], CONTEXT, 4), strict=True):
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(*batches))


def test_the_memory_of_the_writer_does_not_grow_with_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from anyformer.data.text import prepare

    data = str(write(tmp_path / "rows.jsonl", '{"text": "a b c"}\n{"text": "d e"}\n' * 50))
    counts, encode = [], prepare._encode
    monkeypatch.setattr(prepare, "_encode", lambda *args: (counts.append(args[-1]), encode(*args))[1])
    write_shards(data, str(tmp_path / "a"), "char", shard_tokens=40)
    write_shards(data, str(tmp_path / "b"), "char", rows=RowOptions(duplicates="skip"), shard_tokens=40)
    assert [len(c.seen) for c in counts] == [0, 2] and [c.total for c in counts] == [100, 100]


# --- windows of training ---


def test_an_epoch_visits_every_window_once(numbers: str):
    tokens = open_tokens(numbers)[:2700]
    n_windows = 13 * ((200 - CONTEXT) // CONTEXT) + (100 - CONTEXT) // CONTEXT  # of the last shard half is for training
    n_lanes, starts = LANES, []
    for step in range(n_windows // n_lanes * n_lanes // 4):
        rows = draw(tokens, step)
        assert (np.diff(rows) == 1).all() and rows.max() < 2700
        assert (rows[:, 0] // SHARD == rows[:, -1] // SHARD).all(), "no window reaches into the next shard"
        starts += rows[:, 0].tolist()
    assert min(np.diff(sorted(starts))) >= CONTEXT, "windows of an epoch do not overlap"
    assert len(starts) == n_windows // n_lanes * n_lanes
    later = [start for step in range(100, 140) for start in draw(tokens, step)[:, 0].tolist()]
    assert len(set(later) - set(starts)) > len(later) / 2, "other windows in the next epochs"
    assert not np.array_equal(draw(tokens, 0), draw(tokens, 0, seed=1))


def test_an_update_draws_from_many_shards(numbers: str):
    tokens = open_tokens(numbers)
    for accumulate in (1, 2, 4, 16):
        rows = np.concatenate([draw(tokens, step, 8, accumulate) for step in range(accumulate)])
        assert len(set((rows[:, 0] // SHARD).tolist())) >= min(LANES, 15) - 1, accumulate


def test_a_batch_depends_on_seed_and_step_alone(numbers: str):
    """Ranks that take every Nth batch, a run that was killed and another reader see the same stream."""
    stream = [draw(open_tokens(numbers), step, accumulate=4) for step in range(24)]
    for n_ranks in (1, 2, 4):
        for rank in range(n_ranks):
            tokens = open_tokens(numbers)
            assert all(np.array_equal(draw(tokens, s, accumulate=4), stream[s]) for s in range(rank, 24, n_ranks))
    tokens = open_tokens(numbers)
    for step in np.random.default_rng(0).permutation(24).tolist():
        assert np.array_equal(draw(tokens, step, accumulate=4), stream[step])


def test_windows_are_selected_by_their_index(numbers: str):
    """As a mixture does, whose batches have rows of several texts, of some maybe none."""
    tokens = open_tokens(numbers)
    rows = np.concatenate([draw(tokens, step)[:, :-1] for step in range(3)])
    ids, labels = select_windows(tokens, CONTEXT, np.array([7, 2, 11]), 0)
    assert np.array_equal(ids, rows[[7, 2, 11]]) and np.array_equal(labels, ids + 1)
    assert select_windows(tokens, CONTEXT, np.zeros(0, np.int64), 0)[0].shape == (0, CONTEXT)


def count_shards_of_rank(folder: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many shards an epoch of 4 processes takes one of them."""
    tokens, numbers = open_tokens(folder), set()
    read = tokens.reader.read
    monkeypatch.setattr(tokens.reader, "read", lambda n, *a: (numbers.add(n), read(n, *a))[1])
    for step in range(rank, 64 * 5 // 4, 4):
        draw(tokens, step, accumulate=4)
    wait_for_prefetch(tokens)
    return len(numbers)


def test_a_process_reads_its_share_of_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_numbers(tmp_path / "many", 6400, 100)  # 64 shards of 5 windows
    n_shards = [count_shards_of_rank(folder, rank, monkeypatch) for rank in range(4)]
    assert max(n_shards) <= 64 / 4 + 2 * 2, "a quarter of them, those at the ends of 2 lanes, and the next ones"


@pytest.mark.parametrize(
    ("n_tokens", "context", "expected"),
    [
        (1000, 16, [[759, 391, 23, 631], [263, 871, 503, 135], [468, 100, 708, 340]]),
        (100, 64, [[11, 19, 12, 30], [30, 13, 0, 29], [13, 31, 4, 10]]),
    ],
)
def test_other_data_draw_as_before(n_tokens: int, context: int, expected: list[list[int]]):
    """The windows of a text that is not in shards are those that were drawn before there were shards."""
    tokens = np.arange(n_tokens, dtype=np.uint16)
    for accumulate in (1, 4):
        windows = [train_windows(tokens, context, 4, 7, step, accumulate=accumulate)[0] for step in (0, 1, 40)]
        assert [rows[:, 0].tolist() for rows in windows] == expected


def test_shards_without_a_window_are_left_out(tmp_path: Path):
    tokens = open_tokens(write_numbers(tmp_path / "short", 209, 100))  # the last one has 9 tokens
    assert {int(row[0]) // 100 for step in range(20) for row in draw(tokens, step)} == {0, 1}
    tokens = open_tokens(write_numbers(tmp_path / "shorter", 200, 10))
    with refuses("no shard holds a window of context 16", "--shard-tokens", "--model.context"):
        draw(tokens, 0)


# --- shards from elsewhere ---


def test_shards_are_fetched_once_and_stay_in_the_cache(mirror: tuple[Hub, str], numbers: str, cache: Path):
    (hub, url), local = mirror, open_tokens(numbers)
    for tokens in (open_tokens(url), open_tokens(url)):
        for step in range(60):
            assert np.array_equal(draw(tokens, step), draw(local, step))
        wait_for_prefetch(tokens)
        fetched = [path for _, path, _ in hub.requests if path.endswith(".bin")]
        assert len(fetched) == len(set(fetched)) == 15 == len(list_cached(cache))


def test_the_cache_is_bounded(mirror: tuple[Hub, str], numbers: str, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYFORMER_SHARD_CACHE", str(5 * SHARD * 2 / 1e9))
    tokens, local = open_tokens(mirror[1]), open_tokens(numbers)
    for step in range(100):
        assert np.array_equal(draw(tokens, step), draw(local, step))
        assert measure_folder(cache) <= 5 * SHARD * 2
    wait_for_prefetch(tokens)
    assert len(list_cached(cache)) == 5


def test_the_shard_that_was_used_longest_ago_makes_room(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYFORMER_SHARD_CACHE", str(300 / 1e9))

    def fetch(name: str) -> None:
        facts = node_cache.FileFacts(name, 100, zlib.crc32(bytes(100)))
        path = node_cache.fetch_file("corpus", facts, lambda: iter([bytes(60), bytes(40)]), name)
        times.append(times[-1] + 1)
        os.utime(path, (times[-1], times[-1]))  # the clock of a file system is coarse

    times = [time.time() - 1000]
    for name in "abcad":
        fetch(name)
    assert sorted(path.name for path in list_cached(cache)) == ["a", "c", "d"]


def test_what_a_killed_process_left_is_removed_later(mirror: tuple[Hub, str], cache: Path):
    tokens = open_tokens(mirror[1])
    tokens.reader.read(0)
    folder = list_cached(cache)[0].parent
    for name, age in ((".new-killed", 2 * node_cache.STALE_SECONDS), (".new-running", 0)):
        os.utime(write(folder / name, b"half"), (time.time() - age,) * 2)
    tokens.reader.read(1)
    assert {path.name for path in folder.glob(".new-*")} == {".new-running"}


def test_the_next_shards_are_opened_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokens, opened = open_tokens(write_numbers(tmp_path / "many", 6400, 100)), []
    open_shard = tokens.reader._open

    def record(number: int, waits: object) -> np.ndarray:
        opened.append(threading.current_thread() is threading.main_thread())
        return open_shard(number, ())

    monkeypatch.setattr(tokens.reader, "_open", record)
    for step in range(80):  # an epoch of 64 shards
        if step == LANES // 4:  # every lane has begun
            assert 0 < sum(opened) <= LANES
            opened.clear()
        draw(tokens, step)
        wait_for_prefetch(tokens)
    assert len(opened) >= 64 - 2 * LANES and not any(opened), "afterwards nothing is waited for"


def read_in_process(url: str, cache: str, results: multiprocessing.SimpleQueue) -> None:
    os.environ["ANYFORMER_CACHE"] = cache
    tokens = open_tokens(url)
    results.put(sum(int(draw(tokens, step).sum()) for step in range(30)))


def test_processes_of_a_node_share_what_they_fetch(mirror: tuple[Hub, str], numbers: str, tmp_path: Path):
    (hub, url), local = mirror, open_tokens(numbers)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=read_in_process, args=(url, str(tmp_path / "cache"), results)) for _ in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    expected = sum(int(draw(local, step).sum()) for step in range(30))
    assert [results.get() for _ in processes] == [expected] * 3
    fetched = [path for _, path, _ in hub.requests if path.endswith(".bin")]
    assert len(fetched) == len(set(fetched)), "no shard is fetched twice"


def test_a_damaged_shard_in_the_cache_is_fetched_again(mirror: tuple[Hub, str], numbers: str, cache: Path):
    open_tokens(mirror[1]).reader.read(3)
    (path,) = list_cached(cache)
    for damage in (bytes(400), b"short"):
        path.write_bytes(damage)
        assert open_tokens(mirror[1]).reader.read(3).tolist() == list(range(600, 800))


def test_an_attempt_that_fails_is_repeated(mirror: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch):
    (hub, url), waited = mirror, []
    tokens, path = open_tokens(url), "/numbers/shard-000002.bin"
    content = hub.files[path][1]
    hub.files[path] = ({"status": "503"}, b"")
    monkeypatch.setattr(module.time, "sleep", lambda s: (waited.append(s), hub.files.update({path: ({}, content)})))
    assert tokens.reader.read(2, (5.0, 6.0))[0] == 400 and waited == [5.0]
    hub.files["/numbers/shard-000003.bin"] = ({"status": "503"}, b"")
    with refuses("shard-000003.bin: cannot be reached", "503"):
        tokens.reader.read(3, (5.0, 6.0))
    assert waited == [5.0, 5.0, 6.0]


@pytest.mark.filterwarnings("ignore")
def test_shards_in_a_bucket(tmp_path: Path):
    """memory:// is a bucket of fsspec in this process."""
    pytest.importorskip("fsspec")
    data, url = str(write(tmp_path / "text.txt", SAMPLE)), f"memory://bucket-{tmp_path.name}/corpus"
    write_shards(data, url, "char", shard_tokens=100)
    corpus, expected = prepare_corpus(url), prepare_corpus(data)
    assert holds_shards(url) and corpus_files(url) == []
    assert np.array_equal(corpus.tokens, expected.tokens) and corpus.n_train == expected.n_train
    with refuses(url, "holds an index.json already"):
        write_shards(data, url)
