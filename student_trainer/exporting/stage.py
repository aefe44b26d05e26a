"""The stage `export`: the student of a run as a model folder or a GGUF file."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lectern_common.errors import Conflict, CorruptData
from lectern_common.files import new_folder
from lectern_common.roots import Roots, resolve_under
from lectern_common.stages.export import ExportRequest
from lectern_common.stages.status import Report
from lectern_common.teacher.record.reader import file_sha256
from lectern_common.words import inert_name, size
from student_trainer.exporting.finished import FinishedRun, finished_run
from student_trainer.exporting.gguf_export import WrittenGguf, write_gguf
from student_trainer.journal.disk_full import disk_full_as_error
from student_trainer.stop import Stop

_THEN = "export again"


def export(
    asked: ExportRequest, roots: Roots, work: Path, *, stop: Stop, report: Report
) -> dict[str, Any]:
    """Writes what is asked; returns {run, format, type, root, folder, files, weights_sha256,
    gguf}.

    `folder` is relative to the root named `root`, "runs" or "models". `files` lists {name, bytes,
    sha256}, and `gguf` has the facts of a GGUF file (see WrittenGguf), None for another format.
    Without an output, safetensors are the run's export itself, which is checked and left where it
    is. A stop or a kill leaves nothing.

    Raises:
        NotFound: there is no such run.
        Conflict: it has no export yet, or there is such an output already.
        Incompatible: the student cannot be said in a GGUF file; the message says why.
        CorruptData: the export is not what the trainer wrote, or the file is not what was written.
        DiskFull: no space left; there is no part of a file left either.
    """
    target = None if asked.output is None else _new(roots, asked.output)
    report("tensors", 0, 1)
    run = finished_run(roots, asked.run)
    stop.check()
    written: WrittenGguf | None = None
    if asked.format == "gguf":
        folder, written = _gguf(asked, run, target, stop, report)
        names = [_gguf_name(asked)]
    else:
        folder = run.export
        names = sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )
        if target is not None:
            folder = _copied(run.export, target, names, stop, report)
    files = [_listed(folder, name) for name in names]
    root = roots.runs if target is None else roots.models.resolve()
    result = {
        "run": asked.run,
        "format": asked.format,
        "type": asked.type,
        "root": "runs" if target is None else "models",
        "folder": folder.relative_to(root).as_posix(),
        "files": files,
        "weights_sha256": run.weights_sha256,
        "gguf": None if written is None else asdict(written),
    }
    return result | {"markdown": _text(result)}


def _new(roots: Roots, output: str) -> Path:
    target = resolve_under(roots.models, output, "output")
    if target.exists():
        raise Conflict(f"there is a {inert_name(output)} under {roots.models}: choose another name")
    return target


def _gguf_name(asked: ExportRequest) -> str:
    name = asked.run if asked.output is None else Path(asked.output).name
    return f"{name}-{asked.type}.gguf"


def _gguf(
    asked: ExportRequest, run: FinishedRun, target: Path | None, stop: Stop, report: Report
) -> tuple[Path, WrittenGguf]:
    """Returns the folder of the file, and the facts about it."""
    name = _gguf_name(asked)

    def write(folder: Path) -> WrittenGguf:
        return write_gguf(
            run.export,
            folder / name,
            asked.type or "f16",
            name=Path(name).stem,
            check=stop.check,
            report=report,
        )

    with disk_full_as_error("the GGUF file", _THEN):
        if target is None:
            return run.folder.gguf_path, write(run.folder.gguf_path)
        hidden = target.with_name(f".{target.name}.writing")
        with new_folder(target, hidden) as folder:
            return target, write(folder)


def _copied(source: Path, target: Path, names: list[str], stop: Stop, report: Report) -> Path:
    hidden = target.with_name(f".{target.name}.writing")
    with disk_full_as_error("the export", _THEN), new_folder(target, hidden) as folder:
        for done, name in enumerate(names):
            stop.check()
            report("files", done, len(names))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
            if file_sha256(folder / name) != file_sha256(source / name):
                raise CorruptData(f"the copy of {name} is not what it was copied from")
    return target


def _listed(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return {"name": name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _text(result: dict[str, Any]) -> str:
    lines = [
        f"# {result['run']} as {result['format']}",
        "",
        f"In `{result['root']}/{result['folder']}`:",
        "",
    ]
    lines += [
        f"- `{file['name']}`, {size(file['bytes'])}, SHA-256 `{file['sha256']}`"
        for file in result["files"]
    ]
    written = result["gguf"]
    if written is not None:
        lines += ["", f"Largest rounding error of a weight: {written['largest_error']:.3g}."]
        if written["kept_f16"]:
            lines.append(
                f"{len(written['kept_f16'])} matrices stay in f16, since their rows are no "
                "multiple of 32 numbers long."
            )
        lines += [f"Note: {note}." for note in written["notes"]]
    return "\n".join(lines) + "\n"
