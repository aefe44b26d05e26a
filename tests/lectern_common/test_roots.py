"""Paths stay under their roots, and the folders under a root are found and named."""

from pathlib import Path

import pytest

from lectern_common.errors import InvalidRequest
from lectern_common.roots import folders_with, resolve_under, what_is_there


def test_a_path_that_leaves_its_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    assert resolve_under(root, "a/b", "data.path") == root / "a" / "b"
    (root / "loop").symlink_to("loop")
    for path in ("../x", "/etc", "link/x", "loop/x"):
        with pytest.raises(InvalidRequest) as caught:
            resolve_under(root, path, "data.path")
        assert caught.value.field == "data.path"


def test_folders_are_found_in_order_and_not_below_each_other(tmp_path: Path) -> None:
    for name in ("b", "a/deep", "a/deep/inner", ".hidden", "1/2/3/4", "1/2/3/4/5"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "it").touch()
    (tmp_path / "it").touch()
    assert [str(path.relative_to(tmp_path)) for path in folders_with(tmp_path, "it")] == [
        "1/2/3/4",
        "a/deep",
        "b",
    ]


def test_a_missing_folder_is_reported_with_the_existing_ones(tmp_path: Path) -> None:
    assert what_is_there(tmp_path / "none", "code", "it") == (f"({tmp_path}/none); there are none")
    for number in range(7):
        (tmp_path / f"text-{number}").mkdir()
        (tmp_path / f"text-{number}" / "it").touch()
    assert what_is_there(tmp_path, "tex-3", "it") == f"({tmp_path}); did you mean text-3?"
    assert what_is_there(tmp_path, "xyz", "it") == (
        f"({tmp_path}); there are: text-0, text-1, text-2, text-3, text-4 and 2 more"
    )


def test_the_names_of_existing_folders_are_shown_inert(tmp_path: Path) -> None:
    for name in ("a\nerror: b", "c\x1b[2J"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "it").touch()
    assert what_is_there(tmp_path, "xyz", "it") == (
        f"({tmp_path}); there are: a\\nerror: b, c\\x1b[2J"
    )
