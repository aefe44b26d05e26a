"""Rows of a dataset on a hub, streamed into a file beside the dataset that is made of them.

The file is what the rest reads, like any .jsonl that lies here: the hub is asked for every row
once, also where `lectern data prepare` reads it twice, or is killed and started again. It keeps of
a row the one field that is wanted.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from lectern_common.errors import InvalidRequest, LecternError, Misconfigured, NotFound
from lectern_common.files import fsync, write_atomic
from lectern_common.words import counted
from lectern_data.read.input_files import require_no_dataset
from lectern_data.read.rows import Content

# Rows between two notes of how far the stream is.
_SAVE_EVERY = 1000


@dataclass(frozen=True)
class HubDataset:
    """A dataset by its id (owner/name), or a folder or file that `datasets` reads itself."""

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        return Path(self.name).exists()


@dataclass(frozen=True)
class Fetched:
    """Rows that lie here: as `name` in messages, in the .jsonl file `path`."""

    name: str
    path: Path
    rows: int
    revision: str | None


def fetch(
    dataset: HubDataset,
    content: Content,
    folder: Path,
    *,
    load: Callable[[HubDataset], Iterable[Mapping[str, Any]]] | None = None,
    pin: Callable[[HubDataset], HubDataset] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fetched:
    """Returns the rows of a dataset, having streamed into `folder` those that are not there yet.

    Args:
        dataset: its id, or a local folder.
        content: of every row its field alone is kept; a row without it stays, and is named later.
        folder: where the file goes; what an earlier call of the same left there is gone on with.
        load: gives the rows in a fixed order; None: the `datasets` library, streaming.
        pin: gives the dataset with a revision that names one state of it; None: asks the hub.
        on_progress: told (rows, rows).

    Raises:
        InvalidRequest: the first row has no such field, or the folder is a dataset already.
        Misconfigured: `datasets` is not installed.
        NotFound: there is no such dataset, config, split or revision, or the hub is out of reach.
        LecternError: the stream broke; what has come is kept.
    """
    dataset = (pin or pinned)(dataset)
    folder = folder / f"hub-{_identity(dataset, content.field)}"
    folder.mkdir(parents=True, exist_ok=True)
    spool = _Spool(folder)
    name = f"{dataset.name}/{dataset.split}"
    if not spool.is_done:
        rows = (load or load_stream)(dataset)
        try:
            spool.take(rows, content, on_progress)
        except LecternError:
            if not spool.rows:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except Exception as error:  # of the library, its HTTP clients, its readers of files
            raise LecternError(
                f"{name} broke off after {counted(spool.rows, 'row')}: {_first_line(error)}; what "
                "has come is kept, so the same command goes on from there"
            ) from None
    return Fetched(name, spool.path, spool.rows, dataset.revision)


def pinned(dataset: HubDataset) -> HubDataset:
    """Returns the dataset at the commit that its revision names now. Raises as `fetch`."""
    if dataset.is_local:
        if dataset.revision is not None:
            raise NotFound(f"{dataset.name} lies here and has no revisions; leave --hub-revision")
        require_no_dataset(Path(dataset.name))
        return dataset
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError:
        raise Misconfigured(_MISSING) from None
    client = HfApi()
    try:
        commit = client.dataset_info(dataset.name, revision=dataset.revision).sha
    except Exception as error:  # of the hub's client, of its HTTP client, of a wrong name
        raise NotFound(_why_not(dataset, client.endpoint, error)) from None
    return replace(dataset, revision=commit)


def _why_not(dataset: HubDataset, hub: str, error: Exception) -> str:
    """Returns what was asked of whom, why it did not come, and what to try."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"dataset {dataset.name}"
    if isinstance(error, HFValidationError):
        return f"no folder {dataset.name} here, and it is no id of a hub's dataset (OWNER/NAME)"
    if isinstance(error, GatedRepoError):
        return f"{name} is given out by {hub} to those who agreed to its terms; {_TOKEN}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"no folder {dataset.name} here, and {hub} shows no {name}; check the spelling "
            f"(OWNER/NAME), and if it is private, {_TOKEN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name} at {hub} has no revision {dataset.revision}; see --hub-revision"
    return (
        f"no folder {dataset.name} here, and asking {hub} for {name} failed: {_first_line(error)}; "
        "check the network (HF_ENDPOINT names another hub), or name a folder that lies here"
    )


def load_stream(dataset: HubDataset) -> Iterable[Mapping[str, Any]]:
    """Returns the rows, as the `datasets` library streams them. Raises as `fetch`."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise Misconfigured(_MISSING) from None
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            dataset.name,
            name=dataset.config,
            split=dataset.split,
            revision=dataset.revision,
            streaming=True,
        )
    except Exception as error:  # many kinds: of the library, of the hub's client, ValueError
        config = "" if dataset.config is None else f", configuration {dataset.config}"
        raise NotFound(
            f"cannot open {dataset.name}{config}, split {dataset.split}: {_first_line(error)}; "
            f"--hub-config and --hub-split choose others, and if it is not public, {_TOKEN}"
        ) from None
    return rows


class _Spool:
    """rows.jsonl, and state.json: how much of it counts, and how the stream goes on from there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rows.jsonl"
        self._state_path = folder / "state.json"
        self._state: dict[str, Any] = {"rows": 0, "bytes": 0, "stream": None, "done": False}
        if self._state_path.exists() and self.path.exists():
            self._state = json.loads(self._state_path.read_bytes())
        self.rows: int = self._state["rows"]

    @property
    def is_done(self) -> bool:
        return bool(self._state["done"])

    def take(
        self,
        stream: Iterable[Mapping[str, Any]],
        content: Content,
        on_progress: Callable[[int, int], None],
    ) -> None:
        """Writes the rows behind those that count. Raises what the stream does, and InvalidRequest
        where the very first lacks the field: so will the rest, and it may be hours of streaming.
        """
        field = content.field
        with self.path.open("ab") as file:
            file.truncate(self._state["bytes"])
            file.seek(0, os.SEEK_END)
            for row in self._after(stream):
                if not self.rows and field not in row:
                    raise InvalidRequest(
                        f"the first row has no {field!r}{content.instead(row)}", "hub"
                    )
                kept = {field: row[field]} if field in row else {}
                file.write(json.dumps(kept, default=_no_json).encode() + b"\n")
                self.rows += 1
                if self.rows % _SAVE_EVERY == 0:
                    self._save(file, stream)
                    on_progress(self.rows, self.rows)
            self._save(file, stream, done=True)
        on_progress(self.rows, self.rows)

    def _after(self, stream: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        state = self._state["stream"]
        if state is not None and hasattr(stream, "load_state_dict"):
            stream.load_state_dict(state)
            return iter(stream)
        return islice(iter(stream), self.rows, None)

    def _save(self, file: BinaryIO, stream: object, *, done: bool = False) -> None:
        file.flush()
        fsync(self.path)  # before the state that counts on it
        state = stream.state_dict() if hasattr(stream, "state_dict") else None
        self._state = {"rows": self.rows, "bytes": file.tell(), "stream": state, "done": done}
        write_atomic(self._state_path, json.dumps(self._state).encode(), durable=False)


_TOKEN = "set HF_TOKEN to the access token of an account that may read it"  # noqa: S105 - advice
_MISSING = "a dataset of a hub is read by `datasets`, which is not installed; install lectern[data]"


def _identity(dataset: HubDataset, field: str) -> str:
    """Returns what names these rows: for what lies here also its files' sizes and times."""
    said: list[Any] = [asdict(dataset), field]
    if dataset.is_local:
        root = Path(dataset.name)
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        said += [
            (str(path), path.stat().st_size, path.stat().st_mtime_ns)
            for path in files
            if path.is_file()
        ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _no_json(value: object) -> None:
    """What JSON cannot hold (bytes, times) is no text either; the row is named for it later."""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300] or type(error).__name__
