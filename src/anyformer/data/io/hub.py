"""Repositories of the Hugging Face hub, read by huggingface_hub: `pip install 'anyformer[hub]'`.

    owner/name             a model or a data set; its address on the hub will do as well
    owner/name@v1.0        a revision: a branch, a tag or a commit
    owner/name/path        a folder or a file in it

A repository is listed first and checked: its files have plain names, their number and sizes are bounded and said. Then
the files that are needed are taken from the cache of huggingface_hub or downloaded, into a folder of our own cache.
$HF_ENDPOINT, $HF_HOME, $HF_TOKEN and $HF_HUB_OFFLINE apply. Nothing that is downloaded is executed.
"""

import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ...errors import InputError
from ...events import report_notice, report_progress
from ..registry import GENERATED, SETS
from .cache import build_directory, cache_dir, has_directory
from .checks import read_json
from .files import import_optional

MAX_BYTES = 64 << 30  # of all files that are downloaded
MAX_FILES = 50_000  # of a repository
HUB = "https://huggingface.co"
NAME = r"[A-Za-z0-9][\w.-]{0,95}"
REFERENCE = re.compile(rf"(?P<repo>{NAME}/{NAME})(?:@(?P<revision>[\w.-]+))?(?P<path>(?:/[^/@]+)*)/?")
PLACE = r"/(?:tree|blob|resolve)/(?P<revision>[\w.-]+)(?P<path>(?:/[^/]+)*)"
ADDRESS = re.compile(rf"(?P<repo>{NAME}/{NAME})(?:{PLACE})?/?")
LOCAL_FILE = re.compile(
    r"([^/]+/)?[^/]+\.(csv|tsv|jsonl?|txt|md|parquet|py|zip|tar|gz|xz|zst|npz|gguf|safetensors|wav)"
)
LOCAL_OWNERS = (*SETS, *GENERATED, "runs")  # runs/NAME is where a training writes
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
Kind = Literal["model", "dataset"]
NAMES = {"model": "model", "dataset": "data set"}


@dataclass(frozen=True)
class Reference:
    """What a text such as `owner/name@v1.0/path` names."""

    text: str
    repo: str
    revision: str | None = None
    path: str = ""

    @property
    def address(self) -> str:
        return f"{get_endpoint()}/{self.repo}"


@dataclass(frozen=True)
class Listing:
    """The files of a repository: the commit that they are of, and their sizes in bytes by path."""

    commit: str
    sizes: dict[str, int]


class UnreachableError(InputError):
    """The hub cannot be reached."""


def get_endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def parse_reference(text: str, kind: Kind) -> Reference | None:
    """Return what a text names on the hub; None for what exists here or is no such name.

    A text is taken for a path if there is a folder of the owner's name here, or if it ends like a file of data.
    """
    owner, prefix = text.partition("/")[0], f"{get_endpoint()}/{'datasets/' if kind == 'dataset' else ''}"
    if text.startswith(prefix):
        match = ADDRESS.fullmatch(text.removeprefix(prefix).partition("?")[0])
    elif os.path.exists(text) or os.path.exists(owner) or owner in LOCAL_OWNERS or LOCAL_FILE.fullmatch(text):
        return None
    else:
        match = REFERENCE.fullmatch(text)
    if match is None or ".." in (match["path"] or "").split("/"):
        return None
    return Reference(text, match["repo"], match["revision"], (match["path"] or "").strip("/"))


# --- listing ---


def list_repository(reference: Reference, kind: Kind) -> Listing:
    """List a repository; without a connection, as it was listed the last time. Raises InputError."""
    key = hashlib.sha256(f"{get_endpoint()} {kind} {reference.repo} {reference.revision}".encode()).hexdigest()[:16]
    record = cache_dir() / "hub" / f"{key}.json"
    try:
        listing = query_listing(reference, kind)
    except UnreachableError:
        if not record.is_file():
            raise
        listing = Listing(**read_json(record))
        report_notice(
            f"{reference.text}: the hub cannot be reached: commit {listing.commit[:7]} of the last time is used"
        )
        return listing
    record.parent.mkdir(parents=True, exist_ok=True)
    temporary = record.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({"commit": listing.commit, "sizes": listing.sizes}), "utf-8")
    os.replace(temporary, record)
    return listing


def query_listing(reference: Reference, kind: Kind) -> Listing:
    with explain_errors(reference, kind) as hub:
        api = hub.HfApi(endpoint=get_endpoint(), library_name="anyformer")
        commit = api.repo_info(reference.repo, repo_type=kind, revision=reference.revision).sha
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise InputError(f"{reference.address}: answers with the commit {str(commit)[:60]!r}, which is none")
        sizes = {}
        for entry in api.list_repo_tree(reference.repo, recursive=True, revision=commit, repo_type=kind):
            if isinstance(entry, hub.hf_api.RepoFile):
                check_entry(entry.path, entry.size, reference)
                sizes[entry.path] = entry.size
            if len(sizes) > MAX_FILES:
                raise InputError(
                    f"{reference.address}: has more than {MAX_FILES:,} files: {describe_by_hand(reference, kind)}"
                )
    return Listing(commit, sizes)


def check_entry(path: Any, size: Any, reference: Reference) -> None:
    """Raise InputError unless a path stays below its folder, and a size can be one."""
    parts = PurePosixPath(path).parts if isinstance(path, str) else ()
    if not parts or parts[0] == "/" or ".." in parts or "\\" in path or ":" in path or "\0" in path:
        raise InputError(
            f"{reference.address}: lists the file {str(path)[:80]!r}, outside its folder: nothing is taken"
        )
    if not isinstance(size, int) or size < 0:
        raise InputError(f"{reference.address}: lists {path} with the size {str(size)[:40]!r}: nothing is taken")


def describe_by_hand(reference: Reference, kind: Kind) -> str:
    """How a person downloads a repository without us."""
    return (
        f"download what you need (hf download {reference.repo} --repo-type {kind} --local-dir DIR), and give the folder"
    )


# --- download ---


def fetch_files(
    reference: Reference,
    kind: Kind,
    listing: Listing,
    names: Iterable[str],
    prepare: Callable[[list[Path], Path], None] | None = None,
) -> Path:
    """Return a folder with these files of a repository, downloaded unless they are there. Raises InputError.

    Args:
        prepare: takes the files and an empty folder and fills it; else the files are in it under their own names.
    """
    sizes = {name: listing.sizes[name] for name in names}
    digest = hashlib.sha256(json.dumps([get_endpoint(), *sizes]).encode()).hexdigest()[:8]
    target = cache_dir() / "hub" / f"{kind}s" / f"{reference.repo.replace('/', '--')}-{listing.commit[:12]}-{digest}"
    if has_directory(target):
        return target
    partial = (
        cache_dir() / "hub" / "partial" / target.name
    )  # kept after a failure: complete files are not fetched again
    files = download_files(reference, kind, listing.commit, sizes, partial)
    with build_directory(target) as folder:
        if prepare is not None:
            prepare(files, folder)
        else:
            for name, file in zip(sizes, files):
                link_file(file, folder / name)
    shutil.rmtree(partial, ignore_errors=True)
    return target


def download_files(reference: Reference, kind: Kind, commit: str, sizes: Mapping[str, int], folder: Path) -> list[Path]:
    """Return the paths of files: in the cache of huggingface_hub where they are there, else downloaded into a folder.

    huggingface_hub would put new ones into its cache under a name that the server chooses (the ETag), which could be
    a path to anywhere.
    """
    total, done, files = sum(sizes.values()), 0, []
    what = f"{len(sizes)} file{'s' * (len(sizes) > 1)}, {total / 1e6:,.1f} MB"
    if total > MAX_BYTES:
        hint = describe_by_hand(reference, kind)
        raise InputError(f"{reference.text}: {what}, more than {MAX_BYTES >> 30} GiB: {hint}")
    report_notice(f"{reference.text}: {what}, from {reference.address} (commit {commit[:7]})")
    for name, size in sizes.items():
        with explain_errors(reference, kind) as hub:
            path = hub.try_to_load_from_cache(reference.repo, name, revision=commit, repo_type=kind)
            if not isinstance(path, str) or os.path.getsize(path) != size:
                meter = make_meter(f"{reference.address}: {name}", size, done, total)
                options: dict[str, Any] = {"endpoint": get_endpoint(), "library_name": "anyformer", "tqdm_class": meter}
                options |= {"repo_type": kind, "revision": commit, "local_dir": folder}
                path = hub.hf_hub_download(reference.repo, name, **options)
        if (actual := os.path.getsize(path)) != size:
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(
                f"{reference.address}: {name} has {actual:,} bytes, listed with {size:,}: nothing is taken"
            )
        files.append(Path(path))
        done += size
    return files


def make_meter(where: str, limit: int, done: int, total: int) -> type:
    """Return a class for the `tqdm_class` of huggingface_hub, which reports progress and ends a file that is larger
    than it was listed."""
    tqdm = import_optional("tqdm", "huggingface_hub needs tqdm: pip install tqdm").tqdm

    class ByteMeter(tqdm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options | {"file": io.StringIO(), "mininterval": 3600.0})

        def update(self, n: float | None = 1) -> bool | None:
            result = super().update(n)
            if self.n > limit:
                raise InputError(f"{where} is larger than the {limit:,} bytes that are listed: nothing is taken")
            report_progress("downloading", done + int(self.n), total)
            return result

    return ByteMeter


def link_file(source: Path, target: Path) -> None:
    """Make a file appear at another path too, without a copy where the disk allows it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


# --- errors ---


@contextmanager
def explain_errors(reference: Reference, kind: Kind) -> Generator[Any]:
    """Yield the module huggingface_hub. Whatever it raises becomes an InputError of one line."""
    what = f"{NAMES[kind]} {reference.repo}"
    hint = f"there is no file or folder {reference.text} here; for the {what} on the hub: pip install 'anyformer[hub]'"
    hub = import_optional("huggingface_hub", hint)
    errors = import_optional("huggingface_hub.errors", hint)
    try:
        yield hub
    except InputError:
        raise
    except errors.GatedRepoError:
        access = f"accept its terms at {reference.address}, and set HF_TOKEN (or hf auth login)"
        raise InputError(f"the {what} is gated: {access}") from None
    except errors.RepositoryNotFoundError:
        where = f"no {what} on {get_endpoint()} (or it is private: set HF_TOKEN)"
        raise InputError(f"there is no file or folder {reference.text} here, and {where}") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"the {what} has no revision '{reference.revision}': see {reference.address}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise InputError(f"{get_endpoint()} refuses the {what} (HTTP {status}): try again later") from None
    except errors.OfflineModeIsEnabled:
        raise UnreachableError(
            f"{reference.text} is not here, and HF_HUB_OFFLINE forbids to fetch the {what}"
        ) from None
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        raise describe_answer(error, reference, what) from None
    except Exception as error:  # of its HTTP library, and of answers that are none
        raise describe_answer(error, reference, what) from None


def describe_answer(error: Exception, reference: Reference, what: str) -> InputError:
    """Return the error for a connection that failed, or an answer that cannot be read."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if isinstance(error, ConnectionError) or re.search("Connect|Timeout|Network|Protocol|Proxy", text):
        where = f"the {what} cannot be fetched from {get_endpoint()}"
        return UnreachableError(f"there is no file or folder {reference.text} here, and {where} ({text})")
    return InputError(f"{reference.address} gave an answer that is none of a hub ({text})")
