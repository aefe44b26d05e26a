"""`lectern precompute` and `lectern record`: a teacher's answers on disk."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lectern import console
from lectern.options import Home, Json, command_group, roots_of, spec_of
from lectern_common.errors import Conflict, NotFound
from lectern_common.words import counted, inert_name, size

if TYPE_CHECKING:
    from lectern_common.roots import Roots
    from lectern_common.teacher.record.manifest import RecordManifest

app = command_group("List, check and delete records: teachers' answers on disk.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The record, under the data root.")]


def precompute(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The run spec.")],
    output: Annotated[
        str, typer.Option("--output", metavar="NAME", help="Name of the record to make.")
    ],
    eight_bit_hidden: Annotated[
        bool,
        typer.Option(
            "--hidden-fp8", help="Store hidden states in 8 bits: half the bytes, not exact."
        ),
    ] = False,
    log_prob_bits: Annotated[
        int, typer.Option(help="Bits of a log-probability: 16 or 8.", min=8, max=16)
    ] = 16,
    draw_sets: Annotated[
        int,
        typer.Option(help="Sets of draws to record, used in turn, one an epoch.", min=1, max=256),
    ] = 1,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Record the teacher of a run spec over its data, once, to train without it.

    Asks the teacher about every row of the spec's training and validation data, and writes its
    answers to DATA/NAME, in the spec's teacher.representation. Runs then learn from them with
    `teacher: {record: NAME}`. If the command is stopped or killed, run it again: it goes on.
    """
    from lectern.commands.stages.foreground import run_stage
    from lectern_common.checks.preflight import startable
    from lectern_common.stages.precompute import PrecomputeRequest, RecordOptions

    if log_prob_bits not in (8, 16):
        raise typer.BadParameter("must be 16 or 8", param_hint="--log-prob-bits")
    roots = roots_of(home)
    request = PrecomputeRequest(
        spec=spec_of(spec_file),
        output=_checked(output),
        options=RecordOptions(
            eight_bit_hidden=eight_bit_hidden,
            log_prob_bits=8 if log_prob_bits == 8 else 16,
            draw_sets=draw_sets,
        ),
    )
    startable(request.to_record(), roots)
    result = run_stage("precompute", request, roots, goes_on=True)
    if as_json:
        console.print_json(result)
    else:
        console.note(f"train from it with `teacher: {{record: {output}}}` in a spec")


@app.command("list", epilog="Example: lectern record list --json")
def list_records(home: Home = None, as_json: Json = False) -> None:
    """List the records under the data root."""
    from lectern_common.teacher.record.manifest import read_record_manifest
    from lectern_common.teacher.record.reader import records_in

    roots = roots_of(home)
    found = [(name, read_record_manifest(roots.data / name)) for name in records_in(roots.data)]
    if as_json:
        console.print_json([_facts(name, manifest) for name, manifest in found])
    elif not found:
        console.note(f"no records under {roots.data}; make one with `lectern precompute`")
    for name, manifest in [] if as_json else found:
        print(_line(name, manifest))


@app.command(epilog="Example: lectern record show answers")
def show(name: Name, home: Home = None, as_json: Json = False) -> None:
    """Show what a record holds, of which teacher, and over which data."""
    from lectern_common.teacher.record.manifest import read_record_manifest
    from lectern_common.teacher.record.reader import described

    manifest = read_record_manifest(_folder(name, roots_of(home)))
    if as_json:
        console.print_json(_facts(name, manifest))
        return
    contexts = manifest.contexts
    print(_line(name, manifest))
    print(f"teacher fingerprint {manifest.fingerprint}")
    print(f"of {contexts.data_path} with data.seq_len {contexts.seq_len}")
    for part in manifest.parts:
        rows = manifest.file(f"{part.name}/rows.bin").bytes
        print(
            f"  {part.name}: {described(part)}, {counted(part.rows, 'token')} of "
            f"{counted(part.sequences, 'sequence')}, {rows / part.rows:,.1f} bytes a token"
        )


@app.command(epilog="Example: lectern record verify answers")
def verify(name: Name, home: Home = None, as_json: Json = False) -> None:
    """Read a record whole, and compare every file with the hash in its manifest."""
    from lectern_common.teacher.record.manifest import read_record_manifest
    from lectern_common.teacher.record.reader import require_hash, require_sizes

    folder = _folder(name, roots_of(home))
    manifest = read_record_manifest(folder)
    require_sizes(folder, manifest)
    done = 0
    with console.progress() as advance:
        for file in manifest.files:
            require_hash(folder, manifest, file.path)
            done += file.bytes
            advance("verifying bytes", done, manifest.total_bytes)
    if as_json:
        console.print_json({"record": name, "intact": True, "bytes": done})
    else:
        print(f"{name}: {counted(len(manifest.files), 'file')}, {size(done)}, all intact")


@app.command(epilog="Example: lectern record delete answers --yes")
def delete(
    name: Name,
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a record, or what a stopped `lectern precompute` has left of one."""
    roots = roots_of(home)
    record = _folder(name, roots, must_exist=False)
    left = record.with_name(f".{record.name}.recording")
    folders = [path for path in (record, left) if path.exists()]
    if not folders:
        raise NotFound(f"no record {inert_name(name)} under {roots.data}")
    if record.exists():
        from lectern_common.teacher.record.manifest import require_record

        require_record(record)  # a dataset is not deleted by mistake
    if left.exists() and _is_being_made(left):
        raise Conflict(f"{inert_name(name)} is being made; stop `lectern precompute` first")
    if not yes and not typer.confirm(f"delete {name} and all its answers?", err=True):
        raise Conflict("nothing was deleted")
    for path in folders:
        shutil.rmtree(path)
    console.note(f"deleted {name}")


def _checked(output: str) -> str:
    """Returns the name of a record to make. Raises BadParameter if it is no path under a root."""
    from lectern_common.spec.sections import relative_path

    try:
        return relative_path(output)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from None


def _is_being_made(work: Path) -> bool:
    from lectern_common.files import take_lock

    try:
        os.close(take_lock(work / "lock"))
    except BlockingIOError:
        return True
    return False


def _facts(name: str, manifest: "RecordManifest") -> dict[str, Any]:
    return {"name": name, "bytes": manifest.total_bytes, **manifest.model_dump(by_alias=True)}


def _line(name: str, manifest: "RecordManifest") -> str:
    from lectern_common.teacher.record.reader import described

    what = "; ".join(dict.fromkeys(described(part) for part in manifest.parts))
    return inert_name(f"{name}: {what}; {manifest.model_id}; {size(manifest.total_bytes)}")


def _folder(name: str, roots: "Roots", *, must_exist: bool = True) -> Path:
    from lectern_common.roots import resolve_under

    folder = resolve_under(roots.data, name, "NAME")
    if must_exist and not folder.is_dir():
        from lectern_common.teacher.record.reader import records_in

        there = ", ".join(records_in(roots.data)) or "none"
        raise NotFound(f"no record {inert_name(name)} under {roots.data}; there: {there}")
    return folder
