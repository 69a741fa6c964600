"""A server of small models, shared by the tests of a file."""

from collections.abc import Iterator

import pytest

from anyformer.trained_model import Model
from serve_kit import RunningServer, build_chat_model, serve

pytest.importorskip("uvicorn", reason="the server's libraries: pip install 'anyformer[serve]'")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return build_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def server(chat_model: Model) -> Iterator[RunningServer]:
    with serve({"chat": chat_model}) as running:
        yield running
