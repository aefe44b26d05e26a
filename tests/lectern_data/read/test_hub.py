"""Rows of a hub dataset are streamed once, and continued after a break."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from lectern_common.errors import InvalidRequest, LecternError, NotFound
from lectern_data.prepare import prepare
from lectern_data.read.hub import HubDataset, fetch, load_stream
from lectern_data.read.rows import Content
from lectern_data.settings import PrepareSettings

COUNT = 2500


def rows() -> list[dict[str, Any]]:
    return [{"text": f"row {number} of caf\xe9\n" * 3, "n": number} for number in range(COUNT)]


class Stream:
    """Rows that break off; counts those given. Has `state_dict`, like a stream of `datasets`."""

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


def test_a_broken_stream_continues_from_its_last_save(tmp_path: Path) -> None:
    dataset = HubDataset("owner/name")
    broken, whole = Stream(break_at=2300), Stream()
    with pytest.raises(
        LecternError, match=r"owner/name/train broke off after 2,300 rows: the line"
    ):
        fetch(dataset, Content(), tmp_path, load=lambda _: broken, pin=same)
    fetched = fetch(dataset, Content(), tmp_path, load=lambda _: whole, pin=same)
    assert whole.given == COUNT - 2000
    assert texts_in(fetched.path) == [row["text"] for row in rows()]
    again = Stream()
    assert fetch(dataset, Content(), tmp_path, load=lambda _: again, pin=same) == fetched
    assert again.given == 0


def test_a_stream_without_a_saved_position_skips_the_rows_it_has(tmp_path: Path) -> None:
    dataset = HubDataset("owner/name")
    with pytest.raises(LecternError, match="broke off"):
        fetch(dataset, Content(), tmp_path, load=lambda _: iter(Stream(1200)), pin=same)
    fetched = fetch(dataset, Content(), tmp_path, load=lambda _: rows(), pin=same)
    assert texts_in(fetched.path) == [row["text"] for row in rows()]


def test_another_revision_is_another_dataset(tmp_path: Path) -> None:
    def fetched(revision: str) -> list[str]:
        dataset = HubDataset("owner/name", revision=revision)
        stream = [{"text": revision}]
        return texts_in(fetch(dataset, Content(), tmp_path, load=lambda _: stream, pin=same).path)

    for revision in ("one", "two"):
        assert fetched(revision) == [revision]


def local_parquet(folder: Path) -> Path:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    folder.mkdir()
    halves = rows()[:1300], rows()[1300:]
    for name, part in zip("ab", halves, strict=True):
        table = arrow.Table.from_pylist(part)
        parquet.write_table(table, folder / f"{name}.parquet", row_group_size=300)
    return folder


def test_a_stream_of_the_datasets_library_continues_in_the_middle(tmp_path: Path) -> None:
    source = HubDataset(str(local_parquet(tmp_path / "source")))

    class Breaking:
        """A stream of `datasets` that breaks off in the second file."""

        def __init__(self) -> None:
            self._rows = cast(Any, load_stream(source))
            self.state_dict = self._rows.state_dict

        def __iter__(self) -> Iterator[Any]:
            for number, row in enumerate(self._rows):
                if number == 2100:
                    raise ConnectionError("the line is dead")
                yield row

    with pytest.raises(LecternError, match="2,100 rows"):
        fetch(source, Content(), tmp_path, load=lambda _: Breaking())
    fetched = fetch(source, Content(), tmp_path)
    assert fetched.rows == COUNT and fetched.revision is None
    assert texts_in(fetched.path) == [row["text"] for row in rows()]


def test_a_hub_dataset_gives_the_same_shards_as_its_files(tmp_path: Path) -> None:
    source = local_parquet(tmp_path / "source")
    settings: dict[str, Any] = {"train_vocab_size": 300, "validation_fraction": 0.1}
    prepare(PrepareSettings([], tmp_path / "hub", hub_dataset=HubDataset(str(source)), **settings))
    prepare(PrepareSettings([source], tmp_path / "files", **settings))
    for name in ("", "-validation"):
        for path in sorted((tmp_path / f"files{name}").iterdir()):
            assert (tmp_path / f"hub{name}" / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / ".hub.work").exists()


def test_rows_without_the_field_are_refused_at_the_first_row(tmp_path: Path) -> None:
    stream = Stream()
    with pytest.raises(
        InvalidRequest, match=r"first row has no 'body', but 'text', 'n'; set --text"
    ):
        fetch(HubDataset("owner/name"), Content("body"), tmp_path, load=lambda _: stream, pin=same)
    chats = [{"prompt": "Hi", "messages": []}]
    with pytest.raises(InvalidRequest, match=r"but 'prompt', 'messages'; add --chat"):
        fetch(HubDataset("owner/name"), Content(), tmp_path, load=lambda _: chats, pin=same)
    assert stream.given == 1 and list(tmp_path.iterdir()) == []


class Hub(BaseHTTPRequestHandler):
    """Answers every request for a dataset with the error that its name asks for."""

    def do_GET(self) -> None:
        reason = self.path.partition("?")[0].split("/")[4]
        self.send_response(403 if reason == "GatedRepo" else 404)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a hub that refuses every request."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield address
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("RepoNotFound", "no folder owner/RepoNotFound, and {hub} has no dataset"),
        ("RepoNotFound", r"check the spelling \(OWNER/NAME\), and if it is private, set HF_TOKEN"),
        ("GatedRepo", "owner/GatedRepo on {hub} is gated: accept its terms.* HF_TOKEN"),
        ("RevisionNotFound", "dataset owner/RevisionNotFound on {hub} has no revision v2"),
        ("Anything", "requesting dataset owner/Anything from {hub} failed: .*404.*local folder"),
    ],
)
def test_a_refusal_of_the_hub_is_reported_with_what_to_try(
    tmp_path: Path, hub: str, reason: str, said: str
) -> None:
    dataset = HubDataset(f"owner/{reason}", revision="v2")
    with pytest.raises(NotFound, match=said.format(hub=hub)):
        fetch(dataset, Content(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_hub_is_named_with_advice_about_the_network(tmp_path: Path) -> None:
    """Tests are configured so that no call leaves this machine."""
    with pytest.raises(
        NotFound, match=r"requesting dataset o/n from http.* failed: .*check the network"
    ):
        fetch(HubDataset("o/n"), Content(), tmp_path)


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (HubDataset("./nowhere"), r"no folder ./nowhere, nor is it a valid hub"),
        (HubDataset(".", revision="main"), "has no revisions"),
    ],
)
def test_a_name_that_is_neither_a_folder_nor_an_id_is_refused(
    tmp_path: Path, dataset: HubDataset, reason: str
) -> None:
    with pytest.raises(NotFound, match=reason):
        fetch(dataset, Content(), tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"split": "tset"}, r"source, split tset: Bad split: tset. Available splits: \['train'\]"),
        ({"config": "other"}, "source, configuration other, split train: .*--hub-config and"),
    ],
)
def test_a_missing_split_or_config_is_refused(
    tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    source = local_parquet(tmp_path / "source")
    with pytest.raises(NotFound, match=said):
        fetch(HubDataset(str(source), **wrong), Content(), tmp_path)


def test_without_the_package_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LecternError, match=r"install .lectern\[data\]"):
        fetch(HubDataset("owner/name"), Content(), tmp_path, pin=same)
