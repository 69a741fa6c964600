"""The routes of the server."""

import asyncio
import base64
import math
import mimetypes
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router

from ..errors import InputError
from ..inference.completion import CompletionRequest, parse_request
from ..inference.subtitles import FORMATS, format_subtitles
from ..recipe import SupportsEmbedding, SupportsLens, SupportsPrompts, SupportsTokenCount, SupportsTranscription
from .completions import ChatFormat, CompletionAnswer, Format, TextFormat
from .errors import ApiError, refuse_input
from .gate import Gate, RequestRecord
from .lenses import POLICY as LENS_POLICY
from .lenses import LensPages
from .metrics import Labels
from .models import Completions, ModelSet, ServedModel
from .openai_api import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    TranscriptionBody,
    check_length,
    limit_tokens,
    parse_body,
)
from .options import ServerOptions
from .streaming import EventStream, Json, await_unless_gone
from .uploads import hide_folder, read_body, read_json_body, unpack_files

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; frame-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
Handler = Callable[[Request], Any]


def build_app(models: ModelSet, options: ServerOptions) -> Gate:
    """Return the ASGI application that serves these models."""
    service = Service(models, options)
    routes: list[tuple[str, str, Handler]] = [
        ("GET", "/health", service.report_health),
        ("GET", "/metrics", service.report_metrics),
    ]
    routes += [("GET", "/v1/models", service.list_models), ("GET", "/v1/models/{name:path}", service.show_model)]
    routes += [("POST", "/v1/completions", service.complete), ("POST", "/v1/chat/completions", service.chat)]
    routes += [("POST", "/v1/embeddings", service.embed), ("POST", "/v1/audio/transcriptions", service.transcribe)]
    routes += [("POST", "/v1/audio/translations", service.translate_speech)]
    routes += [("GET", "/v1/describe", service.describe), ("POST", "/v1/predict", service.predict)]
    routes += [("POST", "/v1/lens", service.look_inside), ("GET", "/page/lens/{name}", service.show_lens)]
    routes += [("GET", "/", show_page), ("GET", "/page/{name}", show_page)]
    router = Router([Route(path, name_route(path, handler), methods=[verb]) for verb, path, handler in routes])
    service.gate = Gate(Mounted(router), options, len(models.models))
    return service.gate


class Mounted:
    """Lets a router raise HTTPException for what it does not have, as within a Starlette application."""

    def __init__(self, router: Router):
        self.router = router

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.router(scope | {"app": self}, receive, send)


def name_route(path: str, handler: Handler) -> Handler:
    """Let a handler's requests be counted and logged by the name of its route."""

    async def handle(request: Request) -> Response:
        request.scope["record"].route = path
        return await handler(request)

    return handle


class Service:
    """What each route does."""

    def __init__(self, models: ModelSet, options: ServerOptions):
        self.models, self.options = models, options
        self.gate: Gate  # around all routes
        self.lenses = LensPages()

    # --- the server ---

    async def report_health(self, request: Request) -> Response:
        is_ready = not self.gate.is_draining
        return Json({"status": "ok" if is_ready else "shutting down"}, 200 if is_ready else 503)

    async def report_metrics(self, request: Request) -> Response:
        values: dict[str, dict[Labels, float]] = {"anyformer_open_requests": {(): self.gate.n_open}}
        for model in self.models:
            for name, value in (model.gauges() | model.measure_prefixes()).items():
                values.setdefault(f"anyformer_{name}", {})[(("model", model.name),)] = value
        return PlainTextResponse(self.gate.metrics.format(values), media_type="text/plain; version=0.0.4")

    async def list_models(self, request: Request) -> Response:
        return Json({"object": "list", "data": [list_facts(model) for model in self.models]})

    async def show_model(self, request: Request) -> Response:
        return Json(list_facts(self.models.find(request.path_params["name"])))

    async def describe(self, request: Request) -> Response:
        model = self.find(request, request.query_params.get("model"))
        facts = {name: value for name, value in model.model.describe().items() if name != "data"}  # may be a path
        facts |= {"model": model.name, "lens": isinstance(model.model.recipe, SupportsLens)}
        return Json(facts | await asyncio.to_thread(model.model.describe_request))

    def find(self, request: Request, name: Any) -> ServedModel:
        model = self.models.find(name)
        request.scope["record"].model = model.name
        return model

    # --- texts ---

    async def complete(self, request: Request) -> Response:
        body = parse_body(CompletionBody, await read_json_body(request))
        model = self.find(request, body.model)
        completion = body.to_request(self.options.max_tokens)

        def choose_format(tokenizer: Any) -> Format:
            return TextFormat(tokenizer, body.echo, body.logprobs is not None)

        return await self.answer(request, model, body, completion, choose_format)

    async def chat(self, request: Request) -> Response:
        body = parse_body(ChatBody, await read_json_body(request))
        model = self.find(request, body.model)
        completion = body.to_request(self.options.max_tokens)
        return await self.answer(
            request, model, body, completion, lambda tokenizer: ChatFormat(tokenizer, body.logprobs)
        )

    async def answer(
        self,
        request: Request,
        model: ServedModel,
        body: Any,
        completion: CompletionRequest,
        choose_format: Callable[[Any], Format],
    ) -> Response:
        """Answer a request for completions, whole or as a stream."""
        record: RequestRecord = request.scope["record"]
        completions = await await_unless_gone(request.receive, model.complete(completion, body.stream))
        try:
            form = choose_format(completions.tokenizer)
            check_context(completions, body.truncate, form.prompt_field)
            answer = CompletionAnswer(model.name, completions, form, record.add_usage)
            headers = {"x-anyformer-warning": answer.warning} if answer.warning else {}
            if not body.stream:
                return Json(await await_unless_gone(request.receive, answer.gather()), headers=headers)
            record.begin_stream()
            events = answer.events(body.stream_options.include_usage)
            stream = EventStream(events, headers, record.deadline, on_close=completions.ticket.cancel)
            completions = None
            return stream
        finally:
            if completions is not None:
                completions.ticket.cancel()

    # --- vectors ---

    async def embed(self, request: Request) -> Response:
        body = parse_body(EmbeddingBody, await read_json_body(request))
        model = self.find(request, body.model)
        recipe, module = model.model.recipe, model.model.module
        if not isinstance(recipe, SupportsEmbedding):
            raise ApiError(400, f"the model '{model.name}' ({model.model.name}) embeds no texts", "no_embeddings")

        def embed() -> tuple[list[list[float]], int]:
            count = (
                recipe.count_tokens(module, body.texts, body.truncate) if isinstance(recipe, SupportsTokenCount) else 0
            )
            return model.model.embed(body.texts, body.truncate), count

        with TemporaryDirectory(prefix="anyformer-") as folder:
            vectors, count = await await_unless_gone(request.receive, model.call(embed, Path(folder), "truncate"))
        if body.dimensions not in (None, len(vectors[0])):
            message = f"dimensions is {body.dimensions}; the vectors of this model have {len(vectors[0])}"
            raise ApiError(400, message, "invalid_value", "dimensions")
        request.scope["record"].add_usage(count, 0)
        data = [
            {"object": "embedding", "index": i, "embedding": format_vector(vector, body.encoding_format)}
            for i, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return Json({"object": "list", "data": data, "model": model.name, "usage": usage})

    # --- sounds ---

    async def transcribe(self, request: Request) -> Response:
        return await self.answer_sound(request, "transcribe")

    async def translate_speech(self, request: Request) -> Response:
        return await self.answer_sound(request, "translate")

    async def answer_sound(self, request: Request, task: str) -> Response:
        with TemporaryDirectory(prefix="anyformer-", ignore_cleanup_errors=True) as name:
            folder = Path(name).resolve()
            fields, paths = await read_body(request, folder)
            if len(paths) != 1:
                message = "expected a form (multipart/form-data) with one part 'file', the sound"
                raise ApiError(400, message, "missing_file", "file")
            body = parse_body(TranscriptionBody, {k: v for k, v in fields.items() if k != "input"})
            model = self.find(request, body.model)
            recipe, module = model.model.recipe, model.model.module
            if not isinstance(recipe, SupportsTranscription):
                raise ApiError(400, f"the model '{model.name}' ({model.model.name}) transcribes no sounds", "no_sounds")
            settings = body.settings(task)
            work = model.call(lambda: recipe.transcribe(module, paths[0], settings), folder)
            result = await await_unless_gone(request.receive, work)
        return format_transcript(result, body, task)

    # --- every recipe ---

    async def predict(self, request: Request) -> Response:
        with TemporaryDirectory(prefix="anyformer-", ignore_cleanup_errors=True) as name:
            folder = Path(name).resolve()
            model, fields = await self.read_request(request, folder)
            if model.batcher is not None:
                return Json(await self.predict_text(request, model, model.batcher.model.tokenizer, fields))
            work = model.call(lambda: model.model.predict(fields), folder)
            return Json(hide_folder(await await_unless_gone(request.receive, work), folder))

    async def read_request(self, request: Request, folder: Path) -> tuple[ServedModel, dict[str, Any]]:
        """Return the model of a request and the request of its recipe, whose files are in the folder."""
        fields, paths = await read_body(request, folder)
        model = self.find(request, fields.pop("model", None))
        if model.reads_files:
            fields = await asyncio.to_thread(unpack_files, fields, folder)
        elif paths:
            message = f"the model '{model.name}' ({model.model.name}) takes no files"
            raise ApiError(400, message, "no_files", "file")
        if not fields:
            raise ApiError(400, 'the request is empty: expected for example {"input": ...}, see /v1/describe')
        return model, fields

    async def predict_text(
        self, request: Request, model: ServedModel, tokenizer: Any, fields: dict[str, Any]
    ) -> dict[str, Any]:
        """Continue prompts in the batch of a model: the recipe's own request and answer."""
        fields = {"tokens": min(CompletionRequest.tokens, self.options.max_tokens)} | fields
        recipe, module = model.model.recipe, model.model.module
        try:
            if isinstance(recipe, SupportsPrompts):
                fields = await asyncio.to_thread(recipe.prepare_request, module, fields)
            completion = parse_request(fields, tokenizer)
            check_length("prompt", [str(completion.messages), *completion.prompts])
        except InputError as error:
            raise refuse_input(error, fields) from None
        limit_tokens(completion.tokens, 0, self.options.max_tokens)
        completions = await await_unless_gone(request.receive, model.complete(completion))
        try:
            return await await_unless_gone(request.receive, gather_samples(completions, request.scope["record"]))
        finally:
            completions.ticket.cancel()

    # --- the lens ---

    async def look_inside(self, request: Request) -> Response:
        """Answer with a page of the lens, which a browser finds at its location too."""
        from ..report.lens import build_lens, render_lens

        with TemporaryDirectory(prefix="anyformer-", ignore_cleanup_errors=True) as name:
            folder = Path(name).resolve()
            model, fields = await self.read_request(request, folder)

            def render() -> bytes:
                data = build_lens(model.model, fields)
                data["title"] = f"Inside {model.name}"
                data["facts"] = [fact for fact in data["facts"] if fact != model.model.config.data]  # may be a path
                return render_lens(data).encode()

            work = model.call(render, folder)
            page = await await_unless_gone(request.receive, work)
        return format_lens(page, 201, {"location": f"page/lens/{self.lenses.add(page)}"})

    async def show_lens(self, request: Request) -> Response:
        page = self.lenses.get(request.path_params["name"])
        if page is None:
            raise HTTPException(404)
        return format_lens(page)


async def gather_samples(completions: Completions, record: RequestRecord) -> dict[str, Any]:
    """Return completions as `Completion.result` describes them."""
    ticket, samples = completions.ticket, completions.ticket.request.samples
    results: list[dict[str, Any]] = [
        {"prompt": completions.prompt_text(i // samples), "text": "", "tokens": [], "finish_reason": None}
        for i in range(len(ticket.prompt_ids) * samples)
    ]
    has_logprobs = ticket.request.logprobs is not None
    async for piece in completions.pieces():
        result = results[piece.index]
        result["text"] += piece.text
        result["tokens"] += piece.tokens
        result["finish_reason"] = piece.finish_reason
        result |= {} if piece.notes is None else {"notes": piece.notes}
        if has_logprobs:
            result.setdefault("logprobs", []).extend(entry._asdict() for entry in piece.logprobs)
        record.add_usage(completions.prompt_tokens, sum(len(result["tokens"]) for result in results))
    for i, result in enumerate(results if ticket.prompt_logprobs is not None else ()):
        result["prompt_logprobs"] = [entry._asdict() for entry in (ticket.prompt_logprobs or [])[i // samples]]
    return {"samples": results}


def check_context(completions: Completions, may_truncate: bool, param: str) -> None:
    """Raise ApiError for a prompt that exceeds the context, unless its start may be dropped."""
    if completions.n_dropped and not may_truncate:
        n = completions.n_dropped + completions.context
        message = f"the prompt has {n:,} tokens and the context of the model holds {completions.context:,}: shorten it"
        raise ApiError(400, message, "context_length_exceeded", param)


def list_facts(model: ServedModel) -> dict[str, Any]:
    facts = {"id": model.name, "object": "model", "created": model.created, "owned_by": "anyformer"}
    return facts | {"recipe": model.model.name}


def format_vector(vector: list[float], encoding: str) -> Any:
    return vector if encoding == "float" else base64.b64encode(np.array(vector, "<f4").tobytes()).decode()


def format_transcript(result: dict[str, Any], body: TranscriptionBody, task: str) -> Response:
    if body.response_format == "text":
        return PlainTextResponse(result["text"] + "\n")
    if body.response_format in FORMATS:
        return PlainTextResponse(format_subtitles(result["words"], body.response_format))
    if body.response_format == "json":
        return Json({"text": result["text"], "usage": {"type": "duration", "seconds": math.ceil(result["seconds"])}})
    language = result.get("language") or body.language or "unknown"
    facts = {"task": task, "language": language, "duration": result["seconds"], "text": result["text"]}
    if "segment" in body.timestamp_granularities:
        facts["segments"] = [{"id": i, **segment} for i, segment in enumerate(result["segments"])]
    if "word" in body.timestamp_granularities:
        facts["words"] = [word.to_json() for word in result["words"]]
    return Json(facts)


def format_lens(page: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    fixed = {"content-security-policy": LENS_POLICY, "referrer-policy": "no-referrer", "cache-control": "no-store"}
    return Response(page, status, {**fixed, **(headers or {})}, "text/html")


async def show_page(request: Request) -> Response:
    """The page: files of this package."""
    name = request.path_params.get("name", "index.html")
    folder = files("anyformer.serve") / "page"
    names = {file.name for file in folder.iterdir() if file.is_file()} if folder.is_dir() else set()
    if name not in names:
        raise HTTPException(404)
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    headers = {"content-security-policy": PAGE_POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache"}
    return Response((folder / name).read_bytes(), media_type=kind, headers=headers)
