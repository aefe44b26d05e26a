"""The options of the teacher server, which has the say over them, for `lectern up`."""

import re
import subprocess
import sys
from typing import Any

import typer
from typer.core import TyperCommand


class PointsToTeacher(TyperCommand):
    """A command whose words after "--" go to the teacher, and which says so of options that are the
    teacher's alone.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Returns what TyperCommand does. Raises typer.BadParameter."""
        own = {"--help"}.union(*(parameter.opts for parameter in self.params))
        before = args[: args.index("--")] if "--" in args else args
        names = [word.partition("=")[0] for word in before if word.startswith("--")]
        for name in names:
            if name not in own and name in _options_of_serve():
                raise typer.BadParameter(
                    'it is the teacher\'s; write it after "--", as in: '
                    f"{ctx.command_path} --model MODEL -- {name} ...",
                    param_hint=name,
                )
        return super().parse_args(ctx, args)


def _options_of_serve() -> set[str]:
    """Returns the names of the options, as the help of `lectern teacher serve` says them."""
    argv = [sys.executable, "-P", "-m", "teacher_server", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True)
    return set(re.findall(r"^  (--[a-z-]+)", done.stdout, re.MULTILINE))
