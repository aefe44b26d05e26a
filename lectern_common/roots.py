"""The folders that every path of a run spec is relative to.

    HOME/data      datasets                 LECTERN_DATA_ROOT
    HOME/models    model folders            LECTERN_MODELS_ROOT
    HOME/runs      one folder a run         LECTERN_RUNS_ROOT
    HOME/secrets   teacher tokens           LECTERN_SECRETS_ROOT
    HOME/cache     output heads, by teacher LECTERN_CACHE_ROOT

HOME is `--home`, else LECTERN_HOME, else ~/.lectern.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lectern_common.errors import InvalidRequest


@dataclass(frozen=True)
class Roots:
    """Absolute folders; they need not exist yet."""

    data: Path
    models: Path
    runs: Path
    secrets: Path
    cache: Path

    @classmethod
    def of_home(cls, home: Path | None = None, env: Mapping[str, str] = os.environ) -> "Roots":
        """Returns the roots under `home` (default: LECTERN_HOME, else ~/.lectern).

        An explicit `home` wins over the environment whole; LECTERN_*_ROOT moves single roots of a
        default home.
        """
        if home is not None:
            base, env = home, {}
        else:
            base = Path(env.get("LECTERN_HOME") or Path.home() / ".lectern")
        return cls(
            **{
                name: Path(env.get(f"LECTERN_{name.upper()}_ROOT") or base / name).resolve()
                for name in ("data", "models", "runs", "secrets", "cache")
            }
        )

    def environment(self) -> dict[str, str]:
        """Returns the variables that make `of_home()` in a child process return these roots."""
        names = ("data", "models", "runs", "secrets", "cache")
        return {f"LECTERN_{name.upper()}_ROOT": str(getattr(self, name)) for name in names}


def resolve_under(root: Path, relative: str, field: str) -> Path:
    """Returns `root / relative`, symbolic links followed, that lies under `root`.

    Raises:
        InvalidRequest: naming `field`, where it lies elsewhere.
    """
    try:
        path = (root / relative).resolve()
    except RuntimeError:
        raise InvalidRequest(f"{relative!r} is a link to itself", field=field) from None
    if not path.is_relative_to(root.resolve()):
        raise InvalidRequest(f"{relative!r} leads outside its root folder", field=field)
    return path
