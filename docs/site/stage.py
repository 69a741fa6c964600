"""Collect the pages of the documentation for Sphinx: `make docs`.

python docs/site/stage.py build/docs-source

Pages of docs/ are copied as they are, except that a link to a file outside of docs/ leads to a page with its source, or
to the page of a recipe. The pages of recipes are made from their docstrings and presets.
"""

import importlib
import inspect
import json
import os.path
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from anyformer import recipe_loading
from anyformer.cli.list import describe_recipe

sys.path.insert(0, str(Path(__file__).parent))
import reports

ROOT = Path(__file__).resolve().parents[2]
DOCS, SITE = ROOT / "docs", ROOT / "docs" / "site"
LAST_CHECK, NOT_CHECKED = (
    ROOT / "build" / "test-all.md",
    "# The last check of everything\n\nNone yet: `make test-all`.\n",
)
PROJECT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
API = {
    "anyformer": ("Train, load, ask", "What `import anyformer` offers, besides the Transformer.", ("anyformer",)),
    "model": ("The Transformer", "Pure PyTorch, for whoever wants the parts alone.", ("anyformer.model",)),
    "recipe": (
        "The contract of a recipe",
        "The six names of a recipe, and what it may offer besides.",
        ("anyformer.recipe",),
    ),
    "training": (
        "Training",
        "The loop, its state and its settings.",
        ("anyformer.training.loop", "anyformer.training.config"),
    ),
    "inference": (
        "Generation",
        "Prefill, decode, sample.",
        ("anyformer.inference.decode", "anyformer.inference.sampling"),
    ),
}
REMAINING = "PAGES-THAT-ARE-NOWHERE-ELSE"
LINK = re.compile(r"(\]\()([^)\s#]+)([^)]*\))")
README_PARTS = {"#what-it-does)": "recipes/index.md", "#your-data)": "data.md"}
PICTURES = (".svg", ".png", ".webp")
LANGUAGES = {".py": "python", ".toml": "toml", ".cff": "yaml"}


def main() -> None:
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in sorted(build_pages().items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for picture in (path for path in DOCS.iterdir() if path.suffix in PICTURES):
        shutil.copy(picture, folder)


def build_pages() -> dict[str, str]:
    """Return the text of every page by its path in the folder that Sphinx reads."""
    origins = {page.relative_to(DOCS).as_posix(): page for page in DOCS.rglob("*.md") if SITE not in page.parents}
    origins |= {name.lower(): ROOT / name for name in PROJECT_PAGES}
    origins |= {page.name: page for page in SITE.glob("*.md")}
    texts = {name: path.read_text(encoding="utf-8") for name, path in origins.items()}
    texts["index.md"] = list_remaining(texts["index.md"], [name.removesuffix(".md") for name in sorted(texts)])
    sources: set[Path] = set()
    pages = {name: rewrite_links(name, text, origins[name].parent, sources) for name, text in texts.items()}
    recipes = {f"recipes/{name}.md": describe(name) for name in recipe_loading.list_recipes()}
    pages |= {name: rewrite_links(name, text, DOCS / "recipes", sources) for name, text in recipes.items()}
    pages |= {f"notebooks/{path.stem}.md": show_notebook(path) for path in (DOCS / "notebooks").glob("*.ipynb")}
    pages["recipes/index.md"] = list_recipes()
    pages |= {f"api/{name}.md": document(*page) for name, page in API.items()}
    pages["api/index.md"] = list_api()
    pages["checked.md"] = LAST_CHECK.read_text(encoding="utf-8") if LAST_CHECK.is_file() else NOT_CHECKED
    return pages | dict(build_source_pages(sources))


def list_remaining(index: str, names: list[str]) -> str:
    """Return the index with the pages that it does not list yet, where it wants them."""
    entries = set(re.findall(r"^[\w/-]+$", index, re.M)) | {"index"}
    return index.replace(REMAINING, "\n".join(name for name in names if name not in entries))


# --- links ---


def rewrite_links(name: str, text: str, folder: Path, sources: set[Path]) -> str:
    """Let the links of a page, which lies in `folder` of the repository, lead to pages of the site. Adds the files of
    which a page with the source is needed to `sources`."""

    def rewrite(match: re.Match) -> str:
        target = match[2]
        path = Path(os.path.normpath(folder / target))
        if re.match(r"[a-z]+:", target) or not path.exists() or path.suffix in PICTURES:
            return match[0]
        if path == ROOT / "README.md":  # which the site does not hold as a page
            return match[1] + os.path.relpath(README_PARTS.get(match[3], "index.md"), Path(name).parent) + ")"
        place = find_page(path)
        if place.startswith("source/"):
            sources.add(path)
        return match[1] + os.path.relpath(place, Path(name).parent) + match[3]

    return LINK.sub(rewrite, text)


def find_page(path: Path) -> str:
    """Return the page of the site that stands for a file or a folder of the repository."""
    inside = path.relative_to(ROOT)
    if inside.parts[0] == "docs" and path.suffix in (".md", ".ipynb"):
        return inside.relative_to("docs").with_suffix(".md").as_posix()
    if inside.name in PROJECT_PAGES:
        return inside.name.lower()
    recipe = re.fullmatch(r"src/anyformer/recipes/(\w+?)(?:\.py|/__init__\.py)?", inside.as_posix())
    if recipe and recipe[1] in recipe_loading.list_recipes():
        return f"recipes/{recipe[1]}.md"
    return f"source/{inside.as_posix()}{'/index' if path.is_dir() else ''}.md"


# --- recipes ---


def describe(name: str) -> str:
    """Return the page of a recipe: what it does, in the order of the data, its commands, its presets."""
    recipe = recipe_loading.load_recipe(name)
    facts, paragraphs = describe_recipe(name), (inspect.getdoc(recipe) or "").split("\n\n")
    title, _, about = paragraphs[0].partition(": ")
    lines = [f"(recipe-{name})=", f"# {name}", "", f"**{title}.** {about[:1].upper()}{about[1:]}", ""]
    for paragraph in paragraphs[1:]:
        lines += [*format_paragraph(paragraph), ""]
    lines += ["## Presets", "", *format_presets(facts), ""]
    lines += [f"`anyformer train {name} --help` shows every flag; each field of a preset is one.", ""]
    lines += [*show_report(name), ""]
    source = Path(inspect.getsourcefile(recipe) or "").resolve().relative_to(ROOT)
    place = "../source/" + source.as_posix() + ".md"
    return "\n".join([*lines, f"[The source]({place}) of the recipe.", ""])


def show_report(name: str) -> list[str]:
    """Return the part of a page that shows the report of a short run, which reports.py has made."""
    address = f"../reports/{name}.html"
    command = reports.describe_run(name)[0]
    frame = f'<iframe class="report" src="{address}" title="Report of a short run of {name}" loading="lazy"></iframe>'
    return [
        "## The report of a run",
        "",
        f"As it looks after `{command}`, seconds of training, which show its form and no ability:",
        "",
        *["```{raw} html", frame, f'<p><a href="{address}">The report as a page of its own.</a></p>', "```"],
    ]


def format_paragraph(paragraph: str) -> list[str]:
    """Return a paragraph of a recipe's docstring as Markdown: the table of its parts, its commands, or prose."""
    parts = re.split(r"^(raw|nodes|edges|head|loss) +", paragraph, flags=re.M)
    if len(parts) > 2:
        rows = [f"| **{part}** | {' '.join(text.split())} |" for part, text in zip(parts[1::2], parts[2::2])]
        return ["| | |", "|---|---|", *rows]
    if paragraph.startswith("    "):
        return ["```sh", *join_remarks(inspect.cleandoc(paragraph).splitlines()), "```"]
    prose = re.sub(r"\b(\d{4}\.\d{4,5})\b", r"[\1](https://arxiv.org/abs/\1)", paragraph)
    return [re.sub(r"docs/(\w+\.md)", r"[\1](../\1)", prose)]


def join_remarks(lines: list[str]) -> list[str]:
    """Return commands, each below what is said of it."""
    commands: list[tuple[str, str]] = []
    for line in lines:
        command, _, remark = re.sub(r"\s{2,}", "\0", line.strip(), count=1).partition("\0")
        if line.startswith(" "):  # goes on with the remark above
            command, remark = commands[-1][0], f"{commands.pop()[1]} {line.strip()}"
        commands.append((command, remark))
    return [line for command, remark in commands for line in (*wrap_remark(remark), command)]


def wrap_remark(remark: str) -> list[str]:
    return textwrap.wrap(remark, 82, initial_indent="# ", subsequent_indent="# ")


def format_presets(facts: dict) -> list[str]:
    rows = [
        "| preset | parameters | layers | heads | channels | context | data | exported to |",
        "|---|--:|--:|--:|--:|--:|---|---|",
    ]
    for name, preset in facts["presets"].items():
        size = f"{preset['parameters'] / 1e6:,.2f} M" if "parameters" in preset else ""
        shape = [str(preset.get(key, "")) for key in ("n_layer", "n_head", "dim", "context")]
        mark = " (default)" if name == facts["default"] else ""
        exports = ", ".join(preset["exports"]) or "–"
        rows.append(f"| `{name}`{mark} | {size} | {' | '.join(shape)} | {preset['data']} | {exports} |")
    return [
        *rows,
        "",
        "Parameters are those of the Transformers, without the vocabulary, whose size depends on the data.",
    ]


def list_recipes() -> str:
    names = recipe_loading.list_recipes()
    rows = [f"| [{name}]({name}.md) | {describe_recipe(name)['about'].partition(': ')[2]} |" for name in names]
    head = ["# Recipes", "", "One recipe for each kind of data. Each page is made from the recipe itself.", ""]
    tree = ["", "```{toctree}", ":hidden:", *names, "```", ""]
    return "\n".join([*head, "| recipe | what it does |", "|---|---|", *rows, *tree])


# --- notebooks ---


def show_notebook(path: Path) -> str:
    """Return a notebook with its stored outputs as a page."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        outputs = ["".join(output.get("text", ())).rstrip() for output in cell.get("outputs", ())]
        parts += [f"```\n{output}\n```" for output in outputs if output]
    return "\n\n".join([*parts, f"From the notebook `docs/notebooks/{path.name}`.", ""])


# --- the API ---


def document(title: str, about: str, modules: tuple[str, ...]) -> str:
    """Return a page of the API: the public names of some modules, in the order in which they are written."""
    lines = [f"# {title}", "", about, ""]
    for module_name in modules:
        module = importlib.import_module(module_name)
        for part, names in group_names(module).items():
            heading = [f"## {part}", ""] if len(modules) > 1 or part != module_name else []
            lines += [*heading, "```{eval-rst}", f".. currentmodule:: {module_name}", ""]
            for name in names:
                kind = "autoclass" if inspect.isclass(getattr(module, name)) else "autofunction"
                lines += [f".. {kind}:: {name}", *["   :members:"] * (kind == "autoclass"), ""]
            lines += ["```", ""]
    return "\n".join(lines)


def group_names(module: ModuleType) -> dict[str, list[str]]:
    """Return the classes and functions that a module offers, by the module that they are written in."""
    public = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in public:
        value = getattr(module, name)
        home = getattr(value, "__module__", None) or ""
        is_elsewhere = home.startswith("anyformer.model") and not module.__name__.startswith("anyformer.model")
        if (
            (inspect.isclass(value) or inspect.isfunction(value))
            and home.startswith(module.__name__)
            and not is_elsewhere
        ):
            groups.setdefault(home, []).append((inspect.getsourcelines(value)[1], name))
    homes = sorted(groups, key=lambda home: home.endswith("errors")) if module.__name__ == "anyformer" else list(groups)
    return {home: [name for _, name in sorted(groups[home])] for home in homes}


def list_api() -> str:
    rows = [f"- [{title}]({name}.md): {about}" for name, (title, about, _) in API.items()]
    tree = ["", "```{toctree}", ":hidden:", *API, "```", ""]
    return "\n".join(["# Reference", "", "Made from the docstrings of the code.", "", *rows, *tree])


# --- sources ---


def build_source_pages(paths: set[Path]) -> Iterator[tuple[str, str]]:
    """Yield a page for each file, and for each folder one that lists its files."""
    recipes = (inspect.getsourcefile(recipe_loading.load_recipe(name)) for name in recipe_loading.list_recipes())
    queue = sorted(paths | {Path(path).resolve() for path in recipes if path})
    for path in queue:
        name = path.relative_to(ROOT).as_posix()
        if path.is_dir():
            files = sorted(file for file in path.glob("*.py") if file not in queue and file.read_text().strip())
            queue += files
            rows = [f"- [{file.name}]({file.name}.md)" for file in sorted(path.glob("*.py")) if file in queue]
            yield f"source/{name}/index.md", "\n".join(["---", "orphan: true", "---", f"# {name}", "", *rows, ""])
        else:
            code = path.read_text(encoding="utf-8")
            fence = "`" * max([4, *(len(ticks) + 1 for ticks in re.findall(r"`+", code))])
            head = ["---", "orphan: true", "---", f"# {path.name}", "", f"`{name}`", ""]
            block = [f"{fence}{LANGUAGES.get(path.suffix, 'text')}", code.rstrip("\n"), fence, ""]
            yield f"source/{name}.md", "\n".join([*head, *block])


if __name__ == "__main__":
    main()
