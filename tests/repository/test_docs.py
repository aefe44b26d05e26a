"""The pages say what is there: the map is the tree, reasons are explained, links lead somewhere."""

import functools
import importlib.util
import json
import os
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lectern.demo.specs import MODEL_CONFIGS
from lectern_common.errors import LecternError
from lectern_data.tokens.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("examples/*.md")])


def make_map() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("make_map", ROOT / "docs" / "make_map.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_map_is_the_tree() -> None:
    """`make docs` makes it."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert make_map().page_with_map(page) == page


def test_a_file_that_is_new_changes_the_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text('"""A package. More of it."""\n')
    (tmp_path / "pkg" / "new.py").write_text('"""What is new,\nin one line: yes."""\n')
    made = make_map()
    monkeypatch.setattr(made, "ROOT", tmp_path)
    monkeypatch.setattr(made, "PACKAGES", ("pkg",))
    lines = made.page_with_map(
        "before\n<!-- map: made by docs/make_map.py -->\nold\n<!-- end of map -->\n"
    )
    assert re.search(r"^pkg/ +A package$", lines, re.MULTILINE)
    assert re.search(r"^  new\.py +What is new, in one line: yes$", lines, re.MULTILINE)
    assert "old" not in lines


def reasons(kind: type[LecternError]) -> Iterator[str]:
    yield kind.reason
    for child in kind.__subclasses__():
        if child.__module__.startswith("lectern_common"):
            yield from reasons(child)


def test_every_reason_of_an_error_is_explained() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    explained = set(re.findall(r"`([a-z_]+)`", page))
    assert set(reasons(LecternError)) <= explained


def test_every_reason_that_a_run_can_end_with_is_explained() -> None:
    """Those that are no error's word: the literals that the control plane and the trainer give."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    table = page.partition("## How a run ended")[2].partition("\n## ")[0]
    explained = set(re.findall(r"^\| `([a-z_]+)`", table, re.MULTILINE))
    sources = [*(ROOT / "control_plane").rglob("*.py"), *(ROOT / "student_trainer").rglob("*.py")]
    given = {
        word
        for path in sources
        for word in re.findall(
            r"(?:RunState\.(?:FAILED|INTERRUPTED|STOPPED),|crashed\(run\.id,|_ended\(recorder,)\s*"
            r'(?:Wanted\.STOPPED, )?"([a-z_]+)"',
            path.read_text(),
        )
    }
    assert len(given) >= 6
    assert given <= explained


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)]*)?\)", page.read_text()):
        if target.startswith("http"):
            continue
        found = page.parent / target if target else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}
            assert anchor[1:] in slugs, f"{page.name}: {target}{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """In backticks, from the root or from within the package that is spoken of."""
    for name in re.findall(r"`([\w./-]+\.(?:py|proto|yaml))`", page.read_text()):
        if "/" in name:
            assert any(path.endswith(f"/{name}") for path in files()), f"{page.name}: {name}"


@functools.cache
def files() -> list[str]:
    """Returns the path of every file here from the root, after a slash."""
    found: list[str] = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in (".venv", "node_modules", ".git")]
        below = Path(folder).relative_to(ROOT)
        found += [f"/{(below / name).as_posix()}" for name in names]
    return found


def test_the_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def shapes() -> dict[str, dict[str, Any]]:
    """The configs that demo, examples and the first run of docs/training.md train from."""
    page = (ROOT / "docs" / "training.md").read_text()
    first_run = re.search(r"<<'END'\n(.*?)\nEND\n", page, re.DOTALL)
    assert first_run is not None
    return {
        **MODEL_CONFIGS,
        "first run": json.loads(first_run[1]),
        **{
            f"examples: {path.parent.name}": json.loads(path.read_text())
            for path in (ROOT / "examples" / "models").glob("*/config.json")
        },
    }


@pytest.mark.parametrize("name", shapes())
def test_exports_of_what_is_shown_keep_the_ids_of_a_trained_tokenizer(
    name: str, tmp_path: Path
) -> None:
    trained = train_tokenizer([Path(__file__).read_text()], 400)
    for file, content in trained.files.items():
        (tmp_path / file).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps(shapes()[name]))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in (" 1234", "a  =  [1, 23]\n\n\t\tb\r\n", "e\u0301 \ufb01 \u65e5\u672c \U0001f642"):
        assert loaded(text)["input_ids"] == trained.tokenizer.encode(text).ids
