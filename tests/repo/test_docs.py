"""What the documents name is there: pages, files, tests, benchmarks."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "SPECIFICATION.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [p for d in ("src", "docs", "guest", "tests", "tools", "examples") for p in (ROOT / d).rglob("*")]
SOURCE_NAMES = frozenset("/" + str(p.relative_to(ROOT)) for p in SOURCES if "target" not in p.parts)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(r"`([\w./-]+\.(?:py|rs))(?:::(\w+))?`")
_ROOMS = "|".join(p.name for p in (ROOT / "src" / "hutch").iterdir() if p.is_dir() and p.name.isidentifier())
_PATH = re.compile(rf"`((?:src|docs|guest|tests|tools|examples|{_ROOMS})(?:/[\w.-]+)+)/?`")
"""What can be told from names on the host and from routes: a path below a directory of the repository, or below a room."""
_BENCHMARK = re.compile(r"bench `(\w+)`")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_files_and_tests_exist(page: Path) -> None:
    for name, test in _FILE.findall(page.read_text()):
        found = [s for s in SOURCE_NAMES if s.endswith("/" + name)]
        assert found, f"there is no {name}"
        if test:
            tree = ast.parse((ROOT / name).read_text())
            defined = {
                n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert test in defined, f"{name} has no {test}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_directories_and_data_files_exist(page: Path) -> None:
    for name in _PATH.findall(page.read_text()):
        assert any(s.endswith("/" + name) for s in SOURCE_NAMES), f"there is no {name}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "adr").glob("*.md")), ids=page_id)
def test_each_decision_says_whether_it_holds(page: Path) -> None:
    assert page.read_text().split("\n\n")[1].startswith("**Status**: "), (
        "its second paragraph is not its status"
    )


def promises() -> list[str]:
    """The rows of the specification's table."""
    rows = [r for r in (ROOT / "SPECIFICATION.md").read_text().splitlines() if r.startswith("| ")]
    return [r for r in rows if not r.startswith("| promise |")]


@pytest.mark.parametrize("row", promises(), ids=lambda row: str(row.split("|")[1].strip()))
def test_each_promise_names_what_shows_it(row: str) -> None:
    _, _, number, shown_by, _ = row.split("|")
    assert number.strip()
    benchmarks = _BENCHMARK.findall(shown_by)
    assert benchmarks or _FILE.search(shown_by), shown_by
    assert set(benchmarks) <= parts_of_the_benchmark()


def parts_of_the_benchmark() -> set[str]:
    tree = ast.parse((ROOT / "tests" / "bench" / "run.py").read_text())
    (parts,) = (
        n.value
        for n in tree.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and n.target.id == "PARTS"
    )
    assert isinstance(parts, ast.Dict)
    return {k.value for k in parts.keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}


def test_every_design_page_is_in_the_list() -> None:
    design = ROOT / "docs" / "design"
    linked = set(_LINK.findall((design / "architecture.md").read_text()))
    assert {p.name for p in design.glob("*.md")} - {"architecture.md"} <= linked
