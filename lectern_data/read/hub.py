"""Streams the rows of a hub dataset into a local file, beside the dataset made from them.

The other steps read this file like any local .jsonl. So every row is fetched from the hub once,
even if `lectern data prepare` reads it twice, or is killed and restarted. Only the wanted fields
of each row are kept.
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
from lectern_data.read.chat_rows import without_nulls
from lectern_data.read.input_files import require_no_dataset
from lectern_data.read.rows import Content

# Rows between two saves of the stream's position.
_SAVE_EVERY = 1000


@dataclass(frozen=True)
class HubDataset:
    """A dataset by its id (OWNER/NAME), or a folder or file that `datasets` reads itself."""

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        return Path(self.name).exists()


@dataclass(frozen=True)
class Fetched:
    """Fetched rows, in the .jsonl file `path`.

    `name` is for messages, `columns` are all that the hub's rows have.
    """

    name: str
    path: Path
    rows: int
    revision: str | None
    columns: tuple[str, ...] = ()


def fetch(
    dataset: HubDataset,
    content: Content,
    folder: Path,
    *,
    load: Callable[[HubDataset], Iterable[Mapping[str, Any]]] | None = None,
    pin: Callable[[HubDataset], HubDataset] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fetched:
    """Streams a dataset's missing rows into `folder` and returns all of them.

    Args:
        dataset: its id, or a local folder.
        content: only its columns are kept of each row; a row without it is kept, and named later.
        folder: where the file goes; continues from what an earlier call for the same rows left.
        load: returns the rows in a fixed order; None means the `datasets` library, streaming.
        pin: returns the dataset with a revision that never changes; None means asking the hub.
        on_progress: called with (rows, rows).

    Raises:
        InvalidRequest: the first row has no such field, or the folder is a prepared dataset.
        Misconfigured: `datasets` is not installed.
        NotFound: there is no such dataset, config, split or revision, or the hub is unreachable.
        LecternError: the stream broke; the rows so far are kept.
    """
    dataset = (pin or pinned)(dataset)
    folder = folder / f"hub-{_identity(dataset, content)}"
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
                f"{name} broke off after {counted(spool.rows, 'row')}: {_first_line(error)}; these "
                "rows are kept, so run the same command again to continue from there"
            ) from None
    return Fetched(name, spool.path, spool.rows, dataset.revision, spool.columns)


def pinned(dataset: HubDataset) -> HubDataset:
    """Returns the dataset at the commit that its revision names now. Raises like `fetch`."""
    if dataset.is_local:
        if dataset.revision is not None:
            raise NotFound(f"{dataset.name} is local and has no revisions; remove --hub-revision")
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
    """Returns the message: what was requested from which hub, why it failed, and what to try."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"dataset {dataset.name}"
    if isinstance(error, HFValidationError):
        return f"there is no folder {dataset.name}, nor is it a valid hub dataset id (OWNER/NAME)"
    if isinstance(error, GatedRepoError):
        return f"{name} on {hub} is gated: accept its terms there, and {_TOKEN}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no folder {dataset.name}, and {hub} has no {name}; check the spelling "
            f"(OWNER/NAME), and if it is private, {_TOKEN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name} on {hub} has no revision {dataset.revision}; see --hub-revision"
    return (
        f"there is no folder {dataset.name}, and requesting {name} from {hub} failed: "
        f"{_first_line(error)}; check the network (HF_ENDPOINT sets another hub), or name a local "
        "folder"
    )


def load_stream(dataset: HubDataset) -> Iterable[Mapping[str, Any]]:
    """Returns the rows as a stream of the `datasets` library. Raises like `fetch`."""
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
            f"choose others with --hub-config and --hub-split, and if it is not public, {_TOKEN}"
        ) from None
    return rows


class _Spool:
    """rows.jsonl, and state.json: how much of it is complete, and where the stream continues."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rows.jsonl"
        self._state_path = folder / "state.json"
        self._state: dict[str, Any] = {"rows": 0, "bytes": 0, "stream": None, "done": False}
        if self._state_path.exists() and self.path.exists():
            self._state = json.loads(self._state_path.read_bytes())
        self.rows: int = self._state["rows"]
        self._columns = dict.fromkeys(self._state.get("columns", ()))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._columns)

    @property
    def is_done(self) -> bool:
        return bool(self._state["done"])

    def take(
        self,
        stream: Iterable[Mapping[str, Any]],
        content: Content,
        on_progress: Callable[[int, int], None],
    ) -> None:
        """Writes the rows after the complete ones.

        Raises the stream's errors, and InvalidRequest if the very first row lacks the field: the
        rest would too, after perhaps hours of streaming.
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
                self._columns.update(dict.fromkeys(content.names_in(row)))
                kept = {name: row[name] for name in content.columns if name in row}
                if content.is_chat:  # a null that is a whole field is an empty row, not a lost one
                    kept = {name: without_nulls(value) for name, value in kept.items()}
                file.write(json.dumps(kept, default=_as_json).encode() + b"\n")
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
        fsync(self.path)  # before the state that relies on it
        state = stream.state_dict() if hasattr(stream, "state_dict") else None
        self._state = {"rows": self.rows, "bytes": file.tell(), "stream": state, "done": done}
        self._state["columns"] = list(self._columns)
        write_atomic(self._state_path, json.dumps(self._state).encode(), durable=False)


_TOKEN = "set HF_TOKEN to the access token of an account that may read it"  # noqa: S105 - advice
_MISSING = "hub datasets need `datasets`, which is not installed: pip install 'lectern[data]'"


def _identity(dataset: HubDataset, content: Content) -> str:
    """Returns a hash that identifies these rows; local ones include file sizes and times."""
    said: list[Any] = [asdict(dataset), *content.columns]
    if dataset.is_local:
        root = Path(dataset.name)
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        said += [
            (str(path), path.stat().st_size, path.stat().st_mtime_ns)
            for path in files
            if path.is_file()
        ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _as_json(value: object) -> Any:
    """Returns the text that bytes hold; an object for other bytes, times and the like.

    An object is not a text, so its row is named later.
    """
    try:
        return value.decode() if isinstance(value, bytes) else {"type": type(value).__name__}
    except UnicodeDecodeError:
        return {"type": "bytes"}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300] or type(error).__name__
