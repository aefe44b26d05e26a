"""Rows of a hub's dataset: streamed once, gone on with after a break."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lectern_common.errors import LecternError, NotFound
from lectern_data.hub import HubDataset, fetch, load_stream
from lectern_data.prepare import prepare

COUNT = 2500


def rows() -> list[dict[str, Any]]:
    return [{"text": f"row {number} of caf\xe9\n" * 3, "n": number} for number in range(COUNT)]


class Stream:
    """Rows that break off; counts those given. With `state_dict`, as `datasets` has it."""

    def __init__(self, break_at: int | None = None) -> None:
        self.given = 0
        self._break_at = break_at
        self._start = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows()[self._start :], self._start):
            if number == self._break_at:
                raise ConnectionError("the line is dead")
            self.given += 1
            self._start = number + 1
            yield row

    def state_dict(self) -> dict[str, int]:
        return {"next": self._start}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._start = state["next"]


def same(dataset: HubDataset) -> HubDataset:
    return dataset


def texts_in(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_a_stream_that_breaks_is_gone_on_with_where_it_was_saved(tmp_path: Path) -> None:
    dataset = HubDataset("owner/name")
    broken, whole = Stream(break_at=2300), Stream()
    with pytest.raises(LecternError, match=r"owner/name/train broke off after 2300 rows: the line"):
        fetch(dataset, "text", tmp_path, load=lambda _: broken, pin=same)
    fetched = fetch(dataset, "text", tmp_path, load=lambda _: whole, pin=same)
    assert whole.given == COUNT - 2000
    assert texts_in(fetched.path) == [row["text"] for row in rows()]
    again = Stream()
    assert fetch(dataset, "text", tmp_path, load=lambda _: again, pin=same) == fetched
    assert again.given == 0


def test_rows_without_a_place_to_go_on_from_are_skipped(tmp_path: Path) -> None:
    dataset = HubDataset("owner/name")
    with pytest.raises(LecternError, match="broke off"):
        fetch(dataset, "text", tmp_path, load=lambda _: iter(Stream(1200)), pin=same)
    fetched = fetch(dataset, "text", tmp_path, load=lambda _: rows(), pin=same)
    assert texts_in(fetched.path) == [row["text"] for row in rows()]


def test_another_revision_is_another_dataset(tmp_path: Path) -> None:
    for revision in ("one", "two"):
        dataset = HubDataset("owner/name", revision=revision)
        stream = [{"text": revision}]
        fetched = fetch(dataset, "text", tmp_path, load=lambda _, s=stream: s, pin=same)
        assert texts_in(fetched.path) == [revision]


def local_parquet(folder: Path) -> Path:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    folder.mkdir()
    halves = rows()[:1300], rows()[1300:]
    for name, part in zip("ab", halves, strict=True):
        table = arrow.Table.from_pylist(part)
        parquet.write_table(table, folder / f"{name}.parquet", row_group_size=300)
    return folder


def test_the_datasets_library_streams_and_goes_on_in_the_middle(tmp_path: Path) -> None:
    source = HubDataset(str(local_parquet(tmp_path / "source")))

    class Breaking:
        """What `datasets` streams, breaking off in the second file."""

        def __init__(self) -> None:
            self._rows: Any = load_stream(source)
            self.state_dict = self._rows.state_dict

        def __iter__(self) -> Iterator[Any]:
            for number, row in enumerate(self._rows):
                if number == 2100:
                    raise ConnectionError("the line is dead")
                yield row

    with pytest.raises(LecternError, match="2100 rows"):
        fetch(source, "text", tmp_path, load=lambda _: Breaking())
    fetched = fetch(source, "text", tmp_path)
    assert fetched.rows == COUNT and fetched.revision is None
    assert texts_in(fetched.path) == [row["text"] for row in rows()]


def test_a_hub_dataset_gives_the_same_shards_as_its_files(tmp_path: Path) -> None:
    source = local_parquet(tmp_path / "source")
    settings: dict[str, Any] = {"train_vocab_size": 300, "validation_fraction": 0.1}
    prepare([], tmp_path / "hub", hub_dataset=HubDataset(str(source)), **settings)
    prepare([source], tmp_path / "files", **settings)
    for name in ("", "-validation"):
        for path in sorted((tmp_path / f"files{name}").iterdir()):
            assert (tmp_path / f"hub{name}" / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / ".hub.work").exists()


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (HubDataset("nobody/nothing"), "no dataset nobody/nothing"),
        (HubDataset(".", revision="main"), "has no revisions"),
    ],
)
def test_what_no_hub_has_is_refused(tmp_path: Path, dataset: HubDataset, reason: str) -> None:
    with pytest.raises(NotFound, match=reason):
        fetch(dataset, "text", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"split": "tset"}, {"config": "other"}])
def test_a_split_or_config_that_is_not_there_is_refused(
    tmp_path: Path, wrong: dict[str, str]
) -> None:
    source = local_parquet(tmp_path / "source")
    with pytest.raises(NotFound, match="cannot open"):
        fetch(HubDataset(str(source), **wrong), "text", tmp_path)


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LecternError, match=r"install lectern\[data\]"):
        fetch(HubDataset("owner/name"), "text", tmp_path, pin=same)
