"""Points out teacher options that were given to a command before its "--"."""

from typing import Any

import typer
from typer.core import TyperCommand

from lectern_common.teacher.options import TEACHER_OPTIONS

_TEACHERS = frozenset(option.flag for option in TEACHER_OPTIONS.values())


class PointsToTeacher(TyperCommand):
    """A command that passes words after "--" to the teacher, and refuses teacher options before."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Returns what TyperCommand does. Raises typer.BadParameter."""
        own = {"--help"}.union(*(parameter.opts for parameter in self.params))
        before = args[: args.index("--")] if "--" in args else args
        names = [word.partition("=")[0] for word in before if word.startswith("--")]
        for name in names:
            if name not in own and name in _TEACHERS:
                raise typer.BadParameter(
                    'this is an option of the teacher; write it after "--", as in: '
                    f"{ctx.command_path} --model MODEL -- {name} ...",
                    param_hint=name,
                )
        return super().parse_args(ctx, args)
