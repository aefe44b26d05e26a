"""Finds a model by name: a local folder or file, else the model hub; only data files."""

import errno
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lectern_common.errors import DiskFull, Misconfigured, NotFound
from lectern_common.roots import what_is_there
from lectern_common.tokens.other_weights import adapter_alone
from lectern_common.tokens.shards import MANIFEST_NAME
from lectern_common.tokens.tokenizer_files import TOKENIZER_FILES
from lectern_common.words import inert_name
from lectern_models.gguf_file import GgufFile

CONFIG_NAME = "config.json"
# The files of a model, without any that could run code: no .bin, no .pt, no .py.
_OWN_FILES = ["*.json", "*.safetensors", "*.txt", "LICENSE*", "README.md"]
_HUB_FILES = list(dict.fromkeys([*_OWN_FILES, *TOKENIZER_FILES]))
# Subfolders (original weights, other formats) except that of chat templates, and unsharded copies
# of the weights. A * matches slashes too.
_HUB_FILES_NOT = [*(f"*/{name}" for name in _HUB_FILES if "/" not in name), "consolidated*"]
_HUB_FILES_NOT.remove("*/*.jinja")


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine. `name` is what the user called it.

    `revision` is the hub commit, "" for a local model. `gguf_file` is the file in the folder that
    holds the model, "" if that is config.json with safetensors.
    """

    path: Path
    name: str
    revision: str = ""
    gguf_file: str = ""

    @property
    def gguf(self) -> GgufFile | None:
        return GgufFile(self.path / self.gguf_file) if self.gguf_file else None

    @property
    def public_name(self) -> str:
        """The name for clients, which must not learn the model's path on this machine."""
        name = self.name if self.revision else self.path.name
        if not self.gguf_file:
            return name
        return f"{name}/{self.gguf_file}" if self.revision else self.gguf_file


def find_model(
    name: str,
    revision: str | None = None,
    gguf_file: str | None = None,
    *,
    field: str = "--model",
    models: Path | None = None,
) -> ModelFolder:
    """Returns the folder of a model; downloads a hub id that is not in the local hub cache.

    Args:
        name: an existing folder, a .gguf file, either of them under `models`, or a hub id like
            "Qwen/Qwen2.5-Coder-7B-Instruct"; the first of these that exists.
        revision: hub commit, tag or branch; the result has the commit. With a revision, `models`
            is not searched, since its folders have none.
        gguf_file: name of a GGUF file in the folder or in the hub's model.
        field: the option or field that named the model, for messages.
        models: the models root; None means it is not searched.

    Raises:
        NotFound: no such folder, file or hub model exists, or the folder has no model.
        Misconfigured: a revision was given for a folder, or a GGUF file for a GGUF file.
    """
    here = Path(name)
    models = models if revision is None else None
    if models is not None and not here.exists() and (models / name).exists():
        here = models / name
    if here.exists() and revision is not None:
        raise Misconfigured(
            f"{name} is a folder and has no revision {revision}; leave the revision out"
        )
    if here.suffix == ".gguf" and not here.is_dir():
        if gguf_file is not None:
            raise Misconfigured(f"{name} is a GGUF file itself; leave --gguf-file out")
        if not here.is_file():
            raise NotFound(f"no file {name}{_not_under(models, name)}")
        return ModelFolder(here.resolve().parent, name, gguf_file=here.name)
    if gguf_file is not None and (Path(gguf_file).name != gguf_file or set("*?[") & set(gguf_file)):
        raise Misconfigured(f"--gguf-file {gguf_file} is not a file name")
    if here.is_dir():
        if gguf_file is None and not (here / CONFIG_NAME).exists():
            raise NotFound(f"{field} {name} {_no_model(here)}")
        folder = ModelFolder(here.resolve(), name, gguf_file=gguf_file or "")
    else:
        files = [gguf_file] if gguf_file else _HUB_FILES
        path = _snapshot(name, revision, files, field, _not_under(models, name))
        folder = ModelFolder(path, name, path.name, gguf_file or "")
    if gguf_file and not (folder.path / gguf_file).is_file():
        raise NotFound(f"{name} has no file {gguf_file}")
    return folder


def _not_under(models: Path | None, name: str) -> str:
    """Returns the part of the message about the models root, if that was searched."""
    if models is None or Path(name).is_absolute():
        return ""
    return f", nor under the models root {what_is_there(models, name, CONFIG_NAME)}"


def _no_model(folder: Path) -> str:
    """Returns why a folder without a config.json is not a model folder."""
    if (folder / MANIFEST_NAME).exists():
        return f"is a dataset (it has a {MANIFEST_NAME} of token shards); give a model folder"
    gguf = sorted(path.name for path in folder.glob("*.gguf"))
    adapter = adapter_alone(folder)
    if adapter is not None:
        return adapter
    if gguf:
        return f"has no {CONFIG_NAME}; give the GGUF file itself: {inert_name(folder / gguf[0])}"
    return f"has no {CONFIG_NAME}: it is not a model folder"


def find_on_hub(name: str, revision: str | None, field: str) -> ModelFolder:
    """Returns the folder of a hub id as find_model does, but ignores local folders of that name.

    Raises:
        NotFound: the hub has no such model, or no such revision.
        DiskFull: there is no space left for it.
    """
    path = _snapshot(name, revision, _HUB_FILES, field)
    return ModelFolder(path, name, path.name)


def _snapshot(
    name: str, revision: str | None, files: list[str], field: str, not_under: str = ""
) -> Path:
    """Downloads the files; returns their folder, whose name is the commit."""
    try:
        path = snapshot_download(
            name, revision=revision, allow_patterns=files, ignore_patterns=_HUB_FILES_NOT
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{field} {name}: no space left for the download; free some, or set HF_HOME "
                "to a folder on another disk"
            ) from None
        what = f"{name} at {revision}" if revision else name
        then = " And" if not_under.endswith("?") else "; and" if not_under else ", and"
        here = f"{field} {what} is not a folder here{not_under}"
        raise NotFound(f"{here}{then} {_why(error)}") from None
    return Path(path)


def _why(error: Exception) -> str:
    """Returns why the hub did not return the model, and what to do about it."""
    if isinstance(error, HFValidationError):
        return "it is not a hub id (OWNER/NAME) either"
    if isinstance(error, RevisionNotFoundError):
        return "the model of that name on the hub has no such revision"
    if isinstance(error, GatedRepoError):
        return (
            "the model of that name on the hub is gated: ask for access on its page, and set "
            "HF_TOKEN to a token that may read it"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            "the hub shows no model of that name: correct the name, or set HF_TOKEN to a token "
            "that may read it"
        )
    first_line = str(error).strip().partition("\n")[0]
    return (
        f"the hub cannot be reached ({first_line}): check the network and HF_ENDPOINT, or put the "
        "model's files in a folder under the models root and give that"
    )
