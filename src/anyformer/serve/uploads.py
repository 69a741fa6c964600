"""Bodies of requests: JSON, or forms with files, which live in a temporary folder as long as their answer takes.

A request names no files of the server. What a recipe reads as a file comes as a part of a form, or within JSON as a
data URL, "data:image/png;base64,...", or as {"base64": ..., "name": "a.png"}.
"""

import asyncio
import base64
import binascii
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ..data.io.checks import parse_json
from .errors import ApiError

MAX_FILES, MAX_FIELDS = 64, 64  # of a form
MAX_FIELD_BYTES = 16 << 20
MAX_DEPTH = 8  # of a row in JSON that a file can be in
DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.=+-]+)*;base64,", re.ASCII)
ENDINGS = {"jpeg": "jpg", "x-wav": "wav", "wave": "wav", "mpeg": "mp3", "plain": "txt", "svg+xml": "svg"}


async def read_json_body(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request's body. Raises ApiError."""
    body = await request.body()
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 at byte {error.start}: expected a JSON object") from None
    if not text.strip():
        raise ApiError(400, "the body is empty: expected a JSON object, with content-type: application/json")
    return parse_json(text, "the body")


async def read_body(request: Request, folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """Return the fields of a body, of JSON or of a form, and the files of a form, stored in `folder`.

    A part of a form without a file is JSON if it reads as such, else a text; parts `NAME[]` are the items of a list. A
    part `request` holds further fields.
    Files of the parts `file` and `input` are the input; one of the part `input.NAME` is the field NAME of a row, and
    those of the part `beside` are only stored, for a table that names them.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await read_json_body(request), []
    fields: dict[str, Any] = {}
    uploads: list[tuple[str, Path]] = []
    async with open_form(request) as form:
        for name, part in form.multi_items():
            if isinstance(part, UploadFile):
                uploads.append((name, await store_upload(part, folder)))
            elif name == "request":
                fields |= parse_json(part, "the part 'request'")
            elif name.endswith("[]"):
                fields.setdefault(name[:-2], []).append(parse_field(part))
            else:
                fields[name] = parse_field(part)
    for name, path in uploads:
        if name != "beside":
            place_file(fields, name, str(path))
    return fields, [path for _, path in uploads]


def open_form(request: Request) -> Any:
    """Read a form. Entering the result raises ApiError for one that is damaged or has too many parts."""
    return FormReader(request)


class FormReader:
    """The form of a request, whose files are closed at the end of the block."""

    def __init__(self, request: Request):
        self.request = request

    async def __aenter__(self) -> Any:
        limits: dict[str, Any] = {"max_files": MAX_FILES, "max_fields": MAX_FIELDS, "max_part_size": MAX_FIELD_BYTES}
        try:
            form = await self.request.form(**limits)
        except HTTPException as error:
            raise ApiError(400, f"the form cannot be read: {error.detail}") from None
        except (ValueError, LookupError, KeyError) as error:  # of python-multipart, for headers that make no sense
            raise ApiError(400, f"the form cannot be read: {error}") from None
        return form

    async def __aexit__(self, *_: Any) -> None:
        await self.request.close()


def parse_field(text: str) -> Any:
    """Return the value of a part of a form: what reads as JSON is JSON, anything else a text."""
    try:
        return parse_json(text, "a part", object)
    except ValueError:
        return text


def place_file(fields: dict[str, Any], part: str, path: str) -> None:
    """Put the path of a file where the name of its part says; several files of one part become a list."""
    name, _, column = part.partition(".")
    name = "input" if name == "file" else name
    target, key = fields, name
    if column:
        target, key = fields.setdefault(name, {}), column
        if not isinstance(target, dict):
            raise ApiError(400, f"the part '{part}' is a field of a row, and '{name}' is no row", param=name)
    if key not in target:
        target[key] = path
    elif isinstance(target[key], list):
        target[key].append(path)
    else:
        target[key] = [target[key], path]


async def store_upload(upload: UploadFile, folder: Path) -> Path:
    path = new_path(folder, upload.filename or "file")
    await asyncio.to_thread(write_upload, upload, path)
    return path


def write_upload(upload: UploadFile, path: Path) -> None:
    with path.open("xb") as file:
        shutil.copyfileobj(upload.file, file)


def new_path(folder: Path, name: str) -> Path:
    """Return a path for a file of the client's name. Raises ApiError if there is one of this name."""
    name = re.sub(r"[^\w.-]", "_", name.replace("\\", "/").rpartition("/")[2], flags=re.ASCII).lstrip(".")[-100:]
    path = folder / (name or "file")
    if path.exists():
        raise ApiError(400, f"two files have the name {path.name}: give each its own")
    return path


# --- files within JSON ---


def unpack_files(value: Any, folder: Path, depth: int = 0) -> Any:
    """Return a value with paths instead of the files that it holds, which are stored in `folder`. Raises ApiError."""
    if isinstance(value, str) and (match := DATA_URL.match(value)):
        kind = (match[1] or "").rpartition("/")[2].removeprefix("x-")
        return store_base64(value[match.end() :], f"file.{ENDINGS.get(kind, kind) or 'bin'}", folder)
    if isinstance(value, dict) and "base64" in value and value.keys() <= {"base64", "name"}:
        content, name = value["base64"], value.get("name", "file")
        if not isinstance(content, str) or not isinstance(name, str):
            raise ApiError(400, 'a file is {"base64": text, "name": text}')
        return store_base64(content, name, folder)
    if depth == MAX_DEPTH:
        return value
    if isinstance(value, dict):
        return {name: unpack_files(part, folder, depth + 1) for name, part in value.items()}
    if isinstance(value, list) and any(isinstance(part, str | dict | list) for part in value):
        return [unpack_files(part, folder, depth + 1) for part in value]
    return value


def store_base64(text: str, name: str, folder: Path) -> str:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"the file {name[:40]!r} is no base64: {error}") from None
    names: Iterator[Path] = (folder / f"{n}" for n in range(1, 10_000))
    part = next((path for path in names if not path.exists()), None)  # a folder of its own: any names may repeat
    if part is None:
        raise ApiError(400, "more than 10,000 files in one request")
    part.mkdir()
    path = new_path(part, name)
    path.write_bytes(content)
    return str(path)


def hide_folder(value: Any, folder: Path) -> Any:
    """Return an answer with the names of files instead of the paths at which they were stored."""
    if isinstance(value, str):
        prefix = f"{folder}/"
        return re.sub(rf"{re.escape(prefix)}(?:\d+/)?", "", value) if prefix in value else value
    if isinstance(value, dict):
        return {hide_folder(name, folder): hide_folder(part, folder) for name, part in value.items()}
    if isinstance(value, list) and any(isinstance(part, str | dict | list) for part in value):
        return [hide_folder(part, folder) for part in value]
    return value
