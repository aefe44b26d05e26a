import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import typer

from lectern import console
from lectern.__main__ import app
from lectern_common import errors
from lectern_common.errors import InvalidSpec, LecternError

MAIN = [sys.executable, "-m", "lectern"]


def every_error(root: type[LecternError] = LecternError) -> Iterator[type[LecternError]]:
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


def commands() -> dict[tuple[str, ...], Any]:
    """Returns every command that help shows, by its words."""

    def below(group, words):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from below(command, (*words, name))
            elif not command.hidden:
                yield (*words, name), command

    return dict(below(typer.main.get_command(app), ()))


def test_the_commands_are_exactly_these():
    assert {" ".join(words) for words in commands()} == {
        "demo",
        "up",
        "teacher serve",
        "teacher health",
        "teacher status",
        "token create",
        "train",
        "runs create",
        "runs list",
        "runs show",
        "runs watch",
        "runs delete",
        "runs logs",
        "runs samples",
        "runs stop",
        "runs resume",
        "sweep",
        "sweeps list",
        "sweeps show",
        "sweeps stop",
        "sweeps delete",
        "data prepare",
        "data generate",
        "data show",
        "doctor",
        "alerts test",
        "precompute",
        "record delete",
        "record list",
        "record show",
        "record verify",
        "runs adopt",
        "runs fork",
        "runs history",
        "runs prune",
        "runs set",
        "evaluate",
        "export",
        "publish",
        "tasks delete",
        "tasks list",
        "tasks log",
        "tasks resume",
        "tasks show",
        "tasks stop",
    }


def test_every_command_and_option_has_a_help_text():
    for words, command in commands().items():
        assert command.help, words
        assert command.epilog.startswith("Example: lectern " + " ".join(words)), words
        for parameter in command.params:
            if parameter.name != "help":
                assert parameter.help, f"{words} {parameter.name}"


def test_every_command_that_reads_prints_json_on_request():
    reads = ["runs list", "runs show", "runs watch", "runs logs", "runs samples", "doctor", "train"]
    reads += ["data prepare", "teacher health"]
    for words in reads:
        options = {name for entry in commands()[tuple(words.split())].params for name in entry.opts}
        assert "--json" in options, words


def test_help_documents_every_exit_status(lectern):
    text = lectern("--help").out

    for code, meaning in console.EXIT_CODES.items():
        assert re.search(rf"^ +{code} +{re.escape(meaning)}$", text, re.MULTILINE)


def test_the_version_is_the_installed_one(lectern):
    ended = lectern("--version")

    assert (ended.code, ended.out) == (0, f"lectern {version('lectern')}\n")


@pytest.mark.parametrize(
    ("typed", "known"),
    [
        ("lectern ru", "runs"),
        ("lectern data prepare --max-d", "--max-document-bytes"),
        ("lectern up --engine f", "fixture"),
    ],
)
def test_a_shell_completes_commands_options_and_values(lectern, monkeypatch, typed, known):
    monkeypatch.setenv("_LECTERN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))

    assert lectern().out.split() == [known]


def test_completion_is_shown_and_installed_for_the_current_shell(lectern, tmp_path, monkeypatch):
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    monkeypatch.setenv("HOME", str(tmp_path))

    shown = lectern("--show-completion")
    installed = lectern("--install-completion")

    assert shown.code == installed.code == 0
    assert "complete -o default -F _lectern_completion lectern" in shown.out
    assert shown.out.strip() in (tmp_path / ".bash_completions/lectern.sh").read_text()


def test_every_error_ends_with_a_documented_exit_status():
    for error in every_error():
        assert error.exit_code in console.EXIT_CODES, error
        assert error.exit_code != 0, error


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--help"], 0),
        (["--no-such-option"], 2),
        (["no-such-command"], 2),
        (["train"], 2),
        (["train", "no-such-file.yaml"], 3),
        (["runs", "show", "../etc", "--url", "http://127.0.0.1:1"], 2),
        (["runs", "list", "--url", "http://127.0.0.1:1"], 7),
        (["runs", "list", "--url", "127.0.0.1:1"], 2),
        (["runs", "list", "--token-file", "no-such-file"], 2),
        (["data", "prepare", "no-such-folder", "--output", "x", "--train-tokenizer", "300"], 3),
        (["up"], 2),
        (["up", "--model", "x", "--bind", "nonsense"], 2),
    ],
)
def test_a_failing_command_prints_one_message_and_exits_with_its_status(
    lectern, tmp_path, monkeypatch, arguments, code
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LECTERN_HOME", str(tmp_path))

    ended = lectern(*arguments)

    assert ended.code == code, ended
    assert "Traceback" not in ended.err
    if code not in (0, 2):
        assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
        assert ended.out == ""


def test_the_problems_of_a_spec_are_listed_field_by_field(lectern, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "name: run\nteacher: {adress: x:1}\nstudent: {init: a}\ndata: {path: b}\n"
        "objective: {temperature: 0}\n"
    )

    ended = lectern("train", spec)

    assert ended.code == 2
    assert ended.err.splitlines() == [
        "error: 2 problems in the run spec",
        "  teacher.adress         unknown field; did you mean address?",
        "  objective.temperature  expected more than 0, got 0",
    ]


def test_one_problem_of_a_spec_is_one_line(capsys):
    console.print_error(InvalidSpec([("data.path", "no dataset")]))

    assert capsys.readouterr().err == "error: data.path: no dataset\n"


def test_a_traceback_is_printed_only_for_debugging(lectern, tmp_path, monkeypatch):
    assert "Traceback" not in lectern("train", tmp_path / "none.yaml").err
    monkeypatch.setenv("LECTERN_DEBUG", "1")
    ended = lectern("train", tmp_path / "none.yaml")
    assert "Traceback" in ended.err
    assert ended.err.endswith("none.yaml\n")


def test_an_unexpected_error_is_one_line_too(lectern, monkeypatch):
    def fail(*options: object) -> None:
        raise ValueError("no such thing\x1b[2J")

    monkeypatch.setattr("lectern.commands.doctor.examine", fail)

    ended = lectern("doctor")

    assert ended.code == 1
    assert ended.err == (
        "error: ValueError: no such thing?[2J; this is a bug in lectern; LECTERN_DEBUG=1 shows "
        "the traceback\n"
    )


def test_a_system_error_keeps_its_own_message(lectern, tmp_path):
    (tmp_path / "data").write_text("a file where the data root should be")
    (tmp_path / "a.txt").write_text("text")

    ended = lectern(
        "data",
        "prepare",
        tmp_path / "a.txt",
        "--output",
        "x",
        "--train-tokenizer",
        "300",
        "--home",
        tmp_path,
    )

    assert ended.code == 1
    assert re.fullmatch(rf"error: {tmp_path}/data\S*: Not a directory\n", ended.err)


def test_a_closed_output_pipe_causes_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*MAIN, "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)

    assert done.stderr == ""
    assert done.returncode == 1


def test_the_command_line_defines_only_two_errors_of_its_own():
    ours = {error.__name__: error.__module__ for error in every_error()}

    # The trainer has some of its own; they are here if its tests ran in this process.
    known = (errors.__name__, "student_trainer")
    outside = {name for name, module in ours.items() if not module.startswith(known)}
    assert outside <= {"ChildDied", "ControlPlaneUnavailable"}
    assert os.environ.get("LECTERN_DEBUG") is None


def test_notes_and_errors_cannot_write_on_the_terminal(capsys):
    from lectern import console
    from lectern_common.errors import NotFound

    console.note("left out: \x1b[31mred\x07")
    console.print_error(NotFound("no file \x1b]0;title\x07 here"))

    assert capsys.readouterr().err == "left out: ?[31mred?\nerror: no file ?]0;title? here\n"
