"""The root folders that every path in a run spec is relative to.

    HOME/data      datasets                 LECTERN_DATA_ROOT
    HOME/models    model folders            LECTERN_MODELS_ROOT
    HOME/runs      one folder per run       LECTERN_RUNS_ROOT
    HOME/secrets   teacher tokens           LECTERN_SECRETS_ROOT
    HOME/cache     output heads, by teacher LECTERN_CACHE_ROOT
    HOME/backups   of the database of runs  LECTERN_BACKUPS_ROOT

HOME is `--home`, else LECTERN_HOME, else ~/.lectern.
"""

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from lectern_common.errors import InvalidRequest
from lectern_common.words import inert_name

MAX_DEPTH = 4
MAX_ENTRIES = 1000
_MAX_NAMED = 5
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Roots:
    """Absolute folders, which may not exist yet."""

    data: Path
    models: Path
    runs: Path
    secrets: Path
    cache: Path
    backups: Path = Path()  # beside the run folders, unless given

    def __post_init__(self) -> None:
        if self.backups == Path():
            object.__setattr__(self, "backups", self.runs.parent / "backups")

    @classmethod
    def of_home(cls, home: Path | None = None, env: Mapping[str, str] = os.environ) -> "Roots":
        """Returns the roots under `home` (default: LECTERN_HOME, else ~/.lectern).

        An explicit `home` overrides the whole environment; LECTERN_*_ROOT moves single roots of
        the default home.
        """
        if home is not None:
            base, env = home, {}
        else:
            base = Path(env.get("LECTERN_HOME") or Path.home() / ".lectern")
        return cls(
            **{
                root.name: Path(env.get(_variable(root.name)) or base / root.name).resolve()
                for root in fields(cls)
            }
        )

    def environment(self) -> dict[str, str]:
        """Returns the variables that make `of_home()` in a child process return these roots."""
        return {_variable(root.name): str(getattr(self, root.name)) for root in fields(self)}


def _variable(name: str) -> str:
    return f"LECTERN_{name.upper()}_ROOT"


def resolve_under(root: Path, relative: str, field: str) -> Path:
    """Returns `root / relative` with symbolic links resolved.

    Raises:
        InvalidRequest: naming `field`, if the path is not under `root`.
    """
    try:
        path = (root / relative).resolve()
        path.is_dir()
    except RuntimeError:
        raise InvalidRequest(f"{relative!r} is a link to itself", field=field) from None
    except (OSError, ValueError) as error:  # a name too long, a NUL character, half a character
        why = error.strerror if isinstance(error, OSError) else str(error)
        shown = inert_name(relative[:_SHOWN_CHARACTERS])
        raise InvalidRequest(f"{shown!r} cannot be a path here: {why}", field=field) from None
    if not path.is_relative_to(root.resolve()):
        raise InvalidRequest(f"{relative!r} leads outside its root folder", field=field)
    return path


def folders_with(root: Path, name: str) -> Iterator[Path]:
    """Yields folders under `root` with a file of that name, in order; none inside another."""
    found = 0
    for folder, subfolders, files in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        subfolders[:] = sorted(entry for entry in subfolders if not entry.startswith("."))
        if name in files and depth > 0:
            subfolders.clear()
            yield Path(folder)
            found += 1
        if depth >= MAX_DEPTH:
            subfolders.clear()
        if found >= MAX_ENTRIES:
            return


def what_is_there(
    root: Path, asked: str, name: str, is_one: Callable[[Path], bool] = lambda _: True
) -> str:
    """Returns where a missing folder was looked for, and which ones exist or may be meant.

    Args:
        asked: the missing folder, relative to `root`.
        name: the file that marks folders of this kind.
        is_one: tells them from folders of another kind with such a file.
    """
    found = [folder for folder in folders_with(root, name) if is_one(folder)]
    there = [inert_name(folder.relative_to(root)) for folder in found]
    close = difflib.get_close_matches(asked, there, n=1)
    if close:
        return f"({root}); did you mean {close[0]}?"
    if not there:
        return f"({root}); there are none"
    more = f" and {len(there) - _MAX_NAMED} more" if len(there) > _MAX_NAMED else ""
    return f"({root}); there are: {', '.join(there[:_MAX_NAMED])}{more}"
