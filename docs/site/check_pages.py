"""Check built pages: nothing is loaded from elsewhere, and every link within them leads somewhere.

python docs/site/check_pages.py build/docs
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "manifest", "modulepreload"}


class Page(HTMLParser):
    """The addresses that a page loads, those that it links to, and the places in it that can be linked to."""

    def __init__(self, text: str):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        is_loaded_link = tag == "link" and LOADED_LINKS & set(values.get("rel", "").split())
        if name := LOADED.get(tag) or ("href" if is_loaded_link else None):
            self.loads += [values[name]] if name in values else []
        elif tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loads += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        self.loads += find_css_addresses(values.get("style", ""))


def find_css_addresses(text: str) -> list[str]:
    """Return what a style sheet loads."""
    addresses = re.findall(r"url\(\s*['\"]?([^'\")]+)", text) + re.findall(r"@import\s+['\"]([^'\"]+)", text)
    return [address for address in addresses if not address.startswith(("data:", "#"))]


def check_folder(folder: Path) -> Iterator[str]:
    """Yield what is wrong with the pages and style sheets of a folder, one line each."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    loads = [(path, address) for path, page in pages.items() for address in page.loads]
    sheets = folder.rglob("*.css")
    loads += [(path.resolve(), address) for path in sheets for address in find_css_addresses(path.read_text("utf-8"))]
    for path, address in loads:
        if is_remote(address):
            yield f"{path.relative_to(folder.resolve())} loads {address}"
    for path, page in pages.items():
        local = [address for address in [*page.links, *page.loads] if not is_remote(address) and address[:5] != "data:"]
        for address in dict.fromkeys(local):
            if problem := check_link(path, address, pages):
                yield f"{path.relative_to(folder.resolve())} links to {address}: {problem}"


def is_remote(address: str) -> bool:
    """Whether an address leads elsewhere; a picture that is written within the page does not."""
    return not address.startswith("data:") and bool(urlsplit(address).scheme or urlsplit(address).netloc)


def check_link(path: Path, address: str, pages: dict[Path, Page]) -> str | None:
    """Return what is wrong with a link of the page at `path`, or None."""
    parts = urlsplit(address)
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    target = target / "index.html" if target.is_dir() else target
    if not target.exists():
        return "there is no such file"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return "there is no such place in it"
    return None


def main() -> int:
    folder = Path(sys.argv[1])
    problems = list(check_folder(folder))
    print("\n".join(problems), file=sys.stderr) if problems else None
    count = len(list(folder.rglob("*.html")))
    print(f"{count} pages in {folder}: {len(problems)} links that lead nowhere or elsewhere", file=sys.stderr)
    return bool(problems) or not count


if __name__ == "__main__":
    sys.exit(main())
