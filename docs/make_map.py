"""The map in docs/architecture.md, made of the modules' docstrings: `python docs/make_map.py`.

Each folder and file is a line: its name, and the first sentence of its docstring. `make docs`
writes it; a test compares.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = (
    "protos",
    "lectern_common",
    "lectern_models",
    "teacher_server",
    "student_trainer",
    "control_plane",
    "lectern_data",
    "lectern",
    "faults",
    "benchmarks",
)
_BEGIN, _END = "<!-- map: made by docs/make_map.py -->\n", "<!-- end of map -->\n"
_COLUMN = 30
_GENERATED = ("_pb2.py", "_pb2_grpc.py")


def page_with_map(page: str) -> str:
    """Returns the page with the part between its two markers replaced by today's map."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    drawn = "\n".join(line for package in PACKAGES for line in _folder(ROOT / package, 0))
    return f"{before}{_BEGIN}```\n{drawn}\n```\n{_END}{after}"


def _folder(folder: Path, depth: int) -> Iterator[str]:
    yield _line(f"{folder.name}/", depth, folder / "__init__.py")
    files = [path for path in folder.glob("*.py") if not path.name.endswith(_GENERATED)]
    for path in sorted(files):
        if path.name != "__init__.py":
            yield _line(path.name, depth + 1, path)
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").exists():
            yield from _folder(path, depth + 1)


def _line(name: str, depth: int, module: Path) -> str:
    left = "  " * depth + name
    return f"{left:<{_COLUMN}} {_first_sentence(module)}".rstrip()


def _first_sentence(module: Path) -> str:
    """Returns the first sentence of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(module.read_text())) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".").removesuffix(":")


if __name__ == "__main__":
    PAGE.write_text(page_with_map(PAGE.read_text()))
