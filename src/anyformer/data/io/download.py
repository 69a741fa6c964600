"""Files at a URL: downloaded once, over https, within bounds.

They are kept below the cache directory and read from there afterwards, until they are removed.
"""

import hashlib
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError

from ...errors import InputError
from ...events import report_notice, report_progress
from .archives import enter_single
from .cache import build_directory, cache_dir, has_directory
from .regular_file import BLOCK_BYTES

MAX_BYTES = 16 << 30  # of one download
TIMEOUT_SECONDS = 10.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")  # nothing can listen in between, so that http will do
EXTENSIONS = {
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "text/plain": ".txt",
    "application/json": ".json",
    "application/x-ndjson": ".jsonl",
    "application/zip": ".zip",
    "application/vnd.apache.parquet": ".parquet",
}  # by content type, for an address that ends in no file name
WEB_PAGE = "text/html"


def is_url(text: str) -> bool:
    return text.lower().startswith(("https://", "http://"))


def fetch_url(url: str) -> Path:
    """Return the local file of a URL, downloaded unless it is in the cache. Raises InputError."""
    target = cache_dir() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    if has_directory(target):
        report_notice(f"{url}: downloaded before; remove {target} to fetch it again")
        return enter_single(target)
    try:
        with build_directory(target) as folder:
            headers = download_file(url, folder / ".part", MAX_BYTES)
            name = choose_file_name(url, headers)
            is_page = headers.get("content-type", "").startswith(WEB_PAGE)
            if is_page and not name.lower().endswith((".html", ".htm")):
                raise InputError(
                    f"{url} is a web page, not a file: take the address of the file (Raw, Download) itself"
                )
            os.rename(folder / ".part", folder / name)
    except InputError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        status = f"HTTP {error.code}: " if isinstance(error, HTTPError) else ""
        raise InputError(f"{url} cannot be downloaded: {status}{getattr(error, 'reason', None) or error}") from None
    return target / name


def download_file(url: str, path: Path, max_bytes: int) -> dict[str, str]:
    """Write the content of a URL to a file. Returns the headers, their names in lower case. Raises OSError."""
    with open_url(url) as response, open(path, "wb") as file:
        headers = {name.lower(): value for name, value in dict(response.headers).items()}
        size = headers.get("content-length", "")
        total = int(size) if size.isdecimal() else None
        if total is not None and total > max_bytes:
            raise OSError(f"{total / 1e6:,.0f} MB, more than {max_bytes >> 20:,} MiB")
        if total is not None:
            report_notice(f"{url}: downloading {total / 1e6:,.1f} MB")
        while block := response.read(BLOCK_BYTES):
            if file.tell() + len(block) > max_bytes:
                raise OSError(f"more than {max_bytes >> 20:,} MiB")
            file.write(block)
            report_progress("downloading", file.tell(), max(total or 0, file.tell()))
        if total is not None and file.tell() != total:
            raise OSError(f"ended after {file.tell():,} of {total:,} bytes")
    return headers


def open_url(url: str) -> Any:
    """Return the response of a URL as an open file. Raises OSError, and HTTPException."""
    _check_scheme(url)
    response = urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)
    if response.url != url and not response.url.startswith("https://"):
        response.close()
        raise OSError(f"redirected to {response.url}, which is not https")
    return response


def _check_scheme(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:  # "http://["
        raise OSError(str(error)) from None
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise OSError("not https")


def choose_file_name(url: str, headers: Mapping[str, str]) -> str:
    """Return the file name at the end of a URL, else of the headers; never a path, never hidden."""
    match = re.search(r'filename="?([^";]+)', headers.get("content-disposition", ""))
    candidates = [urllib.parse.unquote(urllib.parse.urlsplit(url).path), match[1] if match else ""]
    names = [re.sub(r"[^\w.-]", "_", PurePosixPath(text.replace("\\", "/")).name).lstrip(".") for text in candidates]
    if with_suffix := [name for name in names if Path(name).suffix]:
        return with_suffix[0][-100:]
    content_type = headers.get("content-type", "").partition(";")[0].strip()
    return (names[0] or "data")[-90:] + EXTENSIONS.get(content_type, "")
