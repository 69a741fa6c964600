"""Render messages with a checkpoint's chat template, in a process of its own (`chat_sandbox`).

The template is foreign code: it may run for ever, or ask for more memory than there is, inside of a single call that
Python cannot interrupt. The process has limits of memory and time, is started at the first request, stays for the next
ones, and ends with this one.
"""

import atexit
import functools
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InputError

MAX_SOURCE_CHARACTERS = 1 << 18
MAX_SECONDS = 10  # of CPU time of a request
PATIENCE = 3  # times as many seconds pass on a busy machine, or where the system has no limit of CPU time
MAX_MEMORY = 1 << 28  # bytes of address space besides those of Python itself
MAX_ANSWER = 1 << 26  # bytes
MEMORY_EXIT, CPU_SIGNAL = 70, 24  # how a process ends at these limits
GROUP = 64  # chats of a request: each request takes a switch between two processes


@dataclass(frozen=True)
class Chat:
    """What is rendered: messages, [{"role": ..., "content": ...}, ...], and functions as JSON schemas."""

    messages: Any
    tools: Any = ()
    add_generation_prompt: bool = True
    """Whether the start of the model's answer follows."""


class RenderingError(InputError):
    """A template has failed, or refused the messages, at the chat with this index."""

    def __init__(self, text: str, index: int = 0):
        super().__init__(text)
        self.index = index


def render_chats(template: str, chats: Sequence[Chat], names: Mapping[str, str]) -> list[str]:
    """Render chats.

    `names`: bos_token, eos_token and the like -> the token's text. Raises InputError for bad messages, and for a
    template that fails, refuses them or exceeds a limit (RenderingError).
    """
    if len(template) > MAX_SOURCE_CHARACTERS:
        raise InputError(f"the chat template has {len(template):,} characters, more than {MAX_SOURCE_CHARACTERS:,}")
    texts: list[str] = []
    for start in range(0, len(chats), GROUP):
        values = [describe_chat(chat, names) for chat in chats[start : start + GROUP]]
        try:
            line = json.dumps({"template": template, "values": values}).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"messages cannot be written as JSON: {error}") from None
        answer = get_renderer(os.getpid()).request(line)
        if "error" in answer:
            problem = f"the chat template cannot render these messages: {answer['error']}"
            raise RenderingError(problem, start + answer.get("index", 0))
        texts += answer["texts"]
    return texts


def describe_chat(chat: Chat, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the variables of a template. Raises InputError for bad messages."""
    check_messages(chat.messages)
    values = {"messages": chat.messages, "tools": list(chat.tools) or None, "documents": None}
    return {**names, **values, "add_generation_prompt": chat.add_generation_prompt}


def check_messages(messages: Any) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError(f'messages should be a list of {{"role": ..., "content": ...}}, found {str(messages)[:60]!r}')
    for i, message in enumerate(messages):
        texts = [message.get(name) for name in ("role", "content")] if isinstance(message, Mapping) else [None]
        if texts[1:] == [None] and isinstance(message, Mapping) and message.get("tool_calls"):
            texts[1] = ""
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"message {i}: expected an object with the texts role and content, found {message!r:.80}")


@functools.lru_cache(maxsize=1)
def get_renderer(pid: int) -> "Renderer":
    """Return the renderer of this process: a process that was forked has one of its own."""
    return Renderer()


class Renderer:
    """The process that renders, started when it is needed and again after it has died. Threads wait for each other."""

    def __init__(self, seconds: float = MAX_SECONDS):
        self.seconds, self.lock = seconds, threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def request(self, line: bytes) -> dict[str, Any]:
        """Return the answer of the process: {"texts"}, or {"error"}, also for one that had to be ended."""
        answer = b""
        with self.lock:
            process, deadline = self.start(), time.monotonic() + self.seconds * PATIENCE
            timer = threading.Timer(self.seconds * PATIENCE, process.kill)
            timer.daemon = True
            timer.start()
            try:
                answer = exchange_lines(process, line)
            finally:
                timer.cancel()
                if not answer.endswith(b"\n"):  # it has died, or the caller was interrupted
                    self.close(kill=True)
        if answer.endswith(b"\n"):
            return json.loads(answer)
        return {"error": self.explain_death(process.returncode, time.monotonic() >= deadline)}

    def start(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            self.close()
            # The path of this process, in which it has found this package; -P: nothing else.
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
            command = [sys.executable, "-P", "-m", f"{__package__}.chat_sandbox", str(math.ceil(self.seconds))]
            pipe = subprocess.PIPE
            try:
                self.process = subprocess.Popen(
                    command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
                )
            except OSError as error:
                raise InputError(f"the process that renders chat templates cannot be started: {error}") from None
        return self.process

    def explain_death(self, status: int, is_late: bool) -> str:
        if is_late or status == -CPU_SIGNAL:
            return f"it takes more than {self.seconds:g} seconds"
        if status == MEMORY_EXIT:
            return f"it needs more than {MAX_MEMORY >> 20} MiB of memory"
        return f"its process ends with status {status}"

    def close(self, kill: bool = False) -> None:
        """End the process, if there is one."""
        process, self.process = self.process, None
        if process is None:
            return
        if kill:
            process.kill()
        try:
            process.communicate(timeout=1)  # closes its input, at which it ends
        except (subprocess.TimeoutExpired, OSError, ValueError):
            process.kill()
            process.wait()


def exchange_lines(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    """Write a line and return the line that follows, without its end where the process has died."""
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise ValueError("the process has no pipes")
    try:
        stdin.write(line)
        stdin.flush()
        return stdout.readline(MAX_ANSWER)
    except OSError:
        return b""
