"""Finding a model by its name: a folder or a file here, else the model hub, data files only."""

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
from lectern_common.tokens.shards import MANIFEST_NAME
from lectern_models.gguf_file import GgufFile

CONFIG_NAME = "config.json"
# What a model is made of, and nothing that could run: no .bin, no .pt, no .py.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md"]
# Folders (original weights, other formats) and unsplit copies of the weights.
_HUB_FILES_NOT = ["*/*", "consolidated*"]


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine. `name` is what the user called it.

    `revision` is the hub commit, "" for what lies here. `gguf_file` is the file in the folder that
    holds the model, "" where that is config.json with safetensors.
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
        """What clients may know: where it lies on this machine is not for them."""
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
    """Returns the folder of a model, downloading a hub id that is not in the local hub cache.

    Args:
        name: an existing folder, a .gguf file, one of both under `models`, or a hub id like
            "Qwen/Qwen2.5-Coder-7B-Instruct"; the first of these that there is.
        revision: hub commit, tag or branch; the result says which commit that is. What is under
            `models` has none, and is passed over.
        gguf_file: name of a GGUF file in the folder or in the hub's model.
        field: what named it, for messages.
        models: the models root; None: not looked at.

    Raises:
        NotFound: there is no such folder or file, it is none of a model, nor has the hub one.
        Misconfigured: a revision was asked of a folder, or a GGUF file of a GGUF file.
    """
    here = Path(name)
    models = models if revision is None else None
    if models is not None and not here.exists() and (models / name).exists():
        here = models / name
    if here.exists() and revision is not None:
        raise Misconfigured(f"{name} is a folder and has no revision {revision}; leave it out")
    if here.suffix == ".gguf" and not here.is_dir():
        if gguf_file is not None:
            raise Misconfigured(f"{name} is a GGUF file itself; leave --gguf-file out")
        if not here.is_file():
            raise NotFound(f"no file {name}{_not_under(models, name)}")
        return ModelFolder(here.resolve().parent, name, gguf_file=here.name)
    if gguf_file is not None and (Path(gguf_file).name != gguf_file or set("*?[") & set(gguf_file)):
        raise Misconfigured(f"--gguf-file {gguf_file} is not the name of a file")
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
    """Returns how the message on a name goes on that is not under the models root either."""
    if models is None or Path(name).is_absolute():
        return ""
    return f", nor under the models root {what_is_there(models, name, CONFIG_NAME)}"


def _no_model(folder: Path) -> str:
    """Returns what a folder without a config.json is."""
    if (folder / MANIFEST_NAME).exists():
        return f"is a dataset (it has a {MANIFEST_NAME} of token shards); name a model's folder"
    gguf = sorted(path.name for path in folder.glob("*.gguf"))
    if gguf:
        return f"has no {CONFIG_NAME}; name the GGUF file itself: {folder / gguf[0]}"
    return f"has no {CONFIG_NAME}: it is no model's folder"


def find_on_hub(name: str, revision: str | None, field: str) -> ModelFolder:
    """Returns the folder of a hub id as find_model does, whatever lies here under that name.

    Raises:
        NotFound: the hub has no such model, or no such revision.
        DiskFull: there is no room for it.
    """
    path = _snapshot(name, revision, _HUB_FILES, field)
    return ModelFolder(path, name, path.name)


def _snapshot(
    name: str, revision: str | None, files: list[str], field: str, not_under: str = ""
) -> Path:
    """Returns the folder of the hub's files, named by their commit."""
    try:
        path = snapshot_download(
            name, revision=revision, allow_patterns=files, ignore_patterns=_HUB_FILES_NOT
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{field} {name}: no space left for what the hub gives; make room, or set HF_HOME "
                "to a folder on another disk"
            ) from None
        what = f"{name} at {revision}" if revision else name
        then = " And" if not_under.endswith("?") else "; and" if not_under else ", and"
        here = f"{field} {what} is no folder here{not_under}"
        raise NotFound(f"{here}{then} {_why(error)}") from None
    return Path(path)


def _why(error: Exception) -> str:
    """Returns why the hub did not give a model, and what to do about it."""
    if isinstance(error, HFValidationError):
        return "no hub id (OWNER/NAME) either"
    if isinstance(error, RevisionNotFoundError):
        return "the hub's model of that name has no such revision"
    if isinstance(error, GatedRepoError):
        return (
            "the hub's model of that name is gated: ask for access on its page, and set HF_TOKEN "
            "to a token that may read it"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            "the hub has no model of that name that it shows to us: correct the name, or set "
            "HF_TOKEN to a token that may read it"
        )
    first_line = str(error).strip().partition("\n")[0]
    return (
        f"the hub cannot be asked ({first_line}): check the network and HF_ENDPOINT, or put the "
        "model's files in a folder under the models root and name that"
    )
