"""Pages of the lens, kept for a while at addresses that nobody can guess.

The page of the server allows no script within markup, which a frame of its text would inherit. A page of the lens is a
document of its own therefore, whose policy takes everything else from it: it has no origin, no network and no storage.
"""

import secrets
import threading
from collections import OrderedDict

MAX_KEPT_BYTES = 128 << 20
POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; frame-ancestors 'self'"
)


class LensPages:
    """The newest pages, by name."""

    def __init__(self) -> None:
        self.pages: OrderedDict[str, bytes] = OrderedDict()
        self.lock = threading.Lock()

    def add(self, page: bytes) -> str:
        """Keep a page and return its name; the oldest ones are dropped for it."""
        name = secrets.token_urlsafe(24)
        with self.lock:
            self.pages[name] = page
            while len(self.pages) > 1 and sum(map(len, self.pages.values())) > MAX_KEPT_BYTES:
                self.pages.popitem(last=False)
        return name

    def get(self, name: str) -> bytes | None:
        with self.lock:
            return self.pages.get(name)
