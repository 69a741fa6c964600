"""What a client is told when a request cannot be answered, in OpenAI's shape."""

from typing import Any

from ..errors import InputError


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: Of HTTP.
        message: One line: what was given, and what would be right.
        code: For programs: "model_not_found".
        param: The field of the request that is wrong.
        headers: Of the response.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, headers: Any = None
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, " ".join(message.split()), code, param
        self.headers: dict[str, str] = headers or {}

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ClientGone(Exception):  # noqa: N818 (nobody is left to be told of an error)
    """The client has closed its connection before its answer was complete."""


def refuse_input(error: InputError, fields: Any = ()) -> ApiError:
    """Return the answer for input that cannot be used; `fields` are those that its message may begin with."""
    first = str(error).partition(" ")[0].partition(".")[0].partition("[")[0]
    return ApiError(400, str(error), "invalid_value", first if first in fields else None)


def refuse_busy(message: str) -> ApiError:
    return ApiError(429, message, "overloaded", headers={"retry-after": "1"})


def refuse_late(seconds: float) -> ApiError:
    """A client that tries again would wait as long again."""
    message = f"the answer takes longer than {seconds:g} seconds (--timeout): ask for less"
    return ApiError(504, message, "timeout", headers={"x-should-retry": "false"})
