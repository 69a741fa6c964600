"""`make coverage` sums by folder, and `make mutation` changes one place and lets the right tests see it."""

import ast
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
cover = runpy.run_path(str(ROOT / "tests" / "release" / "cover.py"))
mutate = runpy.run_path(str(ROOT / "tests" / "release" / "mutate.py"))


def test_folders_are_summed_the_least_covered_first():
    def file(statements: int, covered: int) -> dict:
        return {"summary": {"num_statements": statements, "covered_lines": covered}}

    files = {"src/anyformer/model/a.py": file(6, 6), "src/anyformer/model/b.py": file(4, 3)}
    files |= {"src/anyformer/data/io/c.py": file(10, 5), "src/anyformer/api.py": file(0, 0)}
    rows = cover["sum_folders"](files)
    assert rows == [("data", 10, 5), ("model", 10, 9)]
    assert cover["format_table"](rows).endswith("| data | 10 | 50.0% |\n| model | 10 | 90.0% |\n| all | 20 | 70.0% |")


def test_a_mutant_differs_in_one_place(tmp_path: Path):
    source = tmp_path / "source.py"
    source.write_text("def f(a: int | None, b):\n    return a + b if a is not None and not b else 2\n")
    mutants = {mutant.after: mutant for mutant in mutate["list_mutants"](source)}
    assert {*mutants} == {
        "2 if a is not None and (not b) else a + b", "a is not None or not b", "a - b", "a is None", "b", "3",
    }  # fmt: skip
    for after, mutant in mutants.items():
        mutate["write_mutant"](mutant, tmp_path / "changed.py")
        before, changed = (ast.unparse(ast.parse(path.read_text())) for path in (source, tmp_path / "changed.py"))
        assert changed != before and after in changed


def test_a_change_is_judged_by_the_tests_of_its_module():
    """Those named after it come first; where there are none, and none that import it, all of its folder."""
    assert mutate["list_tests"](mutate["PACKAGE"] / "model" / "nothing.py") == [str(ROOT / "tests" / "model")]
    assert mutate["list_tests"](mutate["PACKAGE"] / "model" / "edges.py")[0].endswith("test_edges.py")


def test_modules_are_named_as_they_are_imported():
    path = mutate["PACKAGE"] / "model" / "pooling.py"
    assert mutate["name_module"](path) == "anyformer.model.pooling"
    assert mutate["name_module"](path.with_name("__init__.py")) == "anyformer.model"
