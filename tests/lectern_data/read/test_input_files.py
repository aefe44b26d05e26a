"""Which files are found inside folders, and the messages if there are none."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lectern_common.errors import InvalidRequest, NotFound
from lectern_data.prepare import prepare
from lectern_data.read.documents import LeftOut
from lectern_data.read.input_files import find_files
from lectern_data.settings import PrepareSettings


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    for name in ("a.py", "b.py", "c.txt", "README"):
        (folder / name).write_text(f"text of {name}\n")
    return folder


def refused(inputs: list[Path], include: list[str], exclude: list[str]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        find_files(inputs, include, exclude)
    return str(caught.value)


def test_a_pattern_that_matches_nothing_is_refused_with_the_existing_endings(
    source: Path,
) -> None:
    assert refused([source], ["*.pyy", "*.pyx"], []) == (
        f"--include '*.pyy' --include '*.pyx' matches no file in {source}; the files there end "
        "in .py (2), nothing (1), .txt (1)"
    )


def test_of_many_endings_the_most_frequent_are_named(source: Path) -> None:
    for number in range(9):
        (source / f"one.e{number}").touch()
    said = refused([source], ["*.pyy"], [])
    assert said.endswith(
        ".py (2), nothing (1), .txt (1), .e0 (1), .e1 (1), .e2 (1), .e3 (1), .e4 (1), ..."
    )


def test_a_folder_without_selected_files_is_refused(source: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / ".git").mkdir(parents=True)
    (empty / ".git/config").touch()
    assert refused([source], [], ["*"]) == f"--exclude '*' leaves no file in {source}"
    assert refused([empty], [], []).startswith(f"no file in {empty} (hidden ones")
    assert len(find_files([empty, source], ["*.py"], [])) == 2


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_without_a_folder_is_refused(source: Path, option: str) -> None:
    patterns = {"include": [], "exclude": [], option: ["*.py"]}
    assert f"--{option} '*.py' has no effect" in refused([source / "a.py"], **patterns)


def test_a_prepared_dataset_is_refused_as_input(source: Path, tmp_path: Path) -> None:
    prepare(
        PrepareSettings([source], source / "made/data", train_vocab_size=300, validation_fraction=0)
    )
    dataset = source / "made/data"
    for inputs in ([dataset], [source]):
        said = refused(inputs, [], [])
        assert said.startswith(f"{dataset} is already a prepared dataset; set it as a run's")
    assert len(find_files([source], [], ["made"])) == len(find_files([source], ["*.py"], [])) + 2


def test_a_manifest_of_something_else_is_read_as_text(source: Path) -> None:
    (source / "manifest.json").write_text('{"name": "an app"}')
    assert len(find_files([source], [], [])) == 5


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder with a readable file and a folder that this process may not list."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "src"
        (folder / "shut").mkdir(parents=True)
        (folder / "a.txt").write_text("text")
        (folder / "shut/b.txt").write_text("text")
        for path in (folder.parent, folder):
            path.chmod(0o755)
        (folder / "shut").chmod(0)
        before = os.geteuid()
        if before == 0:  # whom nothing is closed to
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(before)
            (folder / "shut").chmod(0o700)


def test_a_folder_that_cannot_be_read_is_named_and_a_fault(closed_folder: Path) -> None:
    lost: list[LeftOut] = []
    found = find_files([closed_folder], [], [], lost.append)
    assert [name for name, _ in found] == ["src/a.txt"]
    assert lost == [LeftOut("src/shut", "this folder cannot be read: Permission denied")]
    (said,) = [refused([closed_folder], ["*.py"], [])]
    assert said.endswith("; src/shut: this folder cannot be read: Permission denied")


def test_links_to_folders_are_named_and_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "loop").symlink_to(source)
    lost: list[LeftOut] = []
    assert len(find_files([source], [], [], lost.append)) == 4
    assert [(entry.name, entry.is_fault) for entry in lost] == [
        ("src/linked", False),
        ("src/loop", False),
    ]
    assert "not followed; name that folder itself" in lost[0].reason


def test_an_input_that_is_a_broken_link_says_so(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(NotFound, match="link is a link that leads nowhere"):
        find_files([tmp_path / "link"], [], [])
