"""Which files are found inside folders, and the messages if there are none."""

from pathlib import Path

import pytest

from lectern_common.errors import InvalidRequest
from lectern_data.prepare import prepare
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
