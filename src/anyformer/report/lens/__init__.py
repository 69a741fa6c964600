"""The lens: one page that shows what a model does with one request.

data = build_lens(model, {"input": "the cat"})
Path("lens.html").write_text(render_lens(data))
"""

from .build import build_lens
from .page import render_lens, write_lens

__all__ = ["build_lens", "render_lens", "write_lens"]
