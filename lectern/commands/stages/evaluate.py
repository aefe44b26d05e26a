"""`lectern evaluate`: measures a model: perplexity, agreement, code, lm-evaluation-harness."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lectern import console
from lectern.options import (
    Home,
    Json,
    TeacherTlsCa,
    TeacherTlsCert,
    TeacherTlsKey,
    TeacherTokenFile,
    roots_of,
)
from lectern_common.errors import CorruptData, NotFound
from lectern_common.roots import Roots

if TYPE_CHECKING:
    from lectern_common.stages.evaluate import EvaluateRequest

_TEXT = "Perplexity and agreement"
_CODE = "Code"
_HARNESS = "lm-eval"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN",
            help="The id of a run, a model folder, a hub id, or host:port of a teacher server.",
        ),
    ],
    suite: Annotated[
        list[str],
        typer.Option(
            help="perplexity, agreement, code or lm-eval:TASK; may be given several times.",
            show_default=False,
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="TEACHER",
            help="Teacher that agreement compares with, named like MODEL.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="Weights of a run: export, initial, or the step of a checkpoint "
            "[default: export].",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Commit, tag or branch of a hub id.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Dataset, .jsonl or .txt file under the data root [default: the validation rows "
            "of the run].",
            show_default=False,
            rich_help_panel=_TEXT,
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Tokens that the model sees at a time.", show_default=False),
    ] = None,
    max_documents: Annotated[
        int | None, typer.Option(help="Only so many documents.", show_default=False)
    ] = None,
    representation: Annotated[
        str | None,
        typer.Option(
            help="What a teacher server sends: hidden, dense or top_k [default: hidden].",
            show_default=False,
        ),
    ] = None,
    problems: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="humaneval, or a file of its form under the data root [default: humaneval].",
            show_default=False,
            rich_help_panel=_CODE,
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="completion, or chat through the model's template [default: completion].",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Answers to each problem [default: 1].", show_default=False)
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", help="k of a pass@k; several times for several.", show_default=False),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Of sampled answers; 0 takes the likeliest token [default: 0].",
            show_default=False,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw only from the likeliest tokens of this probability together.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of an answer at most [default: 512].", show_default=False),
    ] = None,
    stop_at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help=r"Text before which an answer ends, such as '\ndef'; several times for several.",
            show_default=False,
        ),
    ] = None,
    max_problems: Annotated[
        int | None, typer.Option(help="Only so many problems.", show_default=False)
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time for a program [default: 3].", show_default=False)
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            metavar="MIB", help="Memory for a program [default: 1024].", show_default=False
        ),
    ] = None,
    no_sandbox: Annotated[
        bool,
        typer.Option(
            "--no-sandbox",
            help="Run generated programs unprotected: they may do to this machine what they like.",
        ),
    ] = False,
    tasks_path: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Folder under the data root with tasks of your own.",
            show_default=False,
            rich_help_panel=_HARNESS,
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only so many questions of each task.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampled answers.")] = 0,
    batch_sequences: Annotated[
        int, typer.Option("--batch", help="Sequences that are computed at a time.")
    ] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    teacher_token_file: TeacherTokenFile = None,
    teacher_tls_ca: TeacherTlsCa = None,
    teacher_tls_cert: TeacherTlsCert = None,
    teacher_tls_key: TeacherTlsKey = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results [default: under tasks/ in the folder of the run; for "
            "other models none].",
            show_default=False,
        ),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Measure a model, and print the results.

    perplexity: loss and bits per byte on held-out text. agreement: KL to the teacher, how often
    both have the same likeliest token, and how well calibrated the model is. code: pass@k, with
    generated programs in a sandbox. lm-eval:TASK: tasks of lm-evaluation-harness.

    Whatever cannot be measured is an error; there is no score then. If the command is stopped or
    killed, the same command goes on, if the results have a folder.
    """
    from lectern.commands.stages.foreground import run_stage
    from lectern_common.stages.requests import parse_request

    roots = roots_of(home)
    asked = {
        "model": _name(model, roots),
        "suites": suite,
        "against": None if against is None else _name(against, roots),
        "weights": int(weights) if weights is not None and weights.isdecimal() else weights,
        "revision": revision,
        "text": {"data": data, "window": window, "max_documents": max_documents},
        "agreement": {"representation": representation},
        "code": {
            "problems": problems,
            "mode": mode,
            "samples": samples,
            "k": k or None,
            "temperature": temperature,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
            "stop": [_unescaped(one) for one in stop_at] if stop_at else None,
            "max_problems": max_problems,
            "seconds": seconds,
            "memory_mib": memory,
            "sandbox": False if no_sandbox else None,
        },
        "lm_eval": {"tasks_path": tasks_path, "num_fewshot": num_fewshot, "limit": limit},
        "seed": seed,
        "batch_sequences": batch_sequences,
        "device": device,
        "dtype": dtype,
        "token_file": teacher_token_file,
        "tls_ca_file": teacher_tls_ca,
        "tls_cert_file": teacher_tls_cert,
        "tls_key_file": teacher_tls_key,
    }
    request = parse_request("evaluate", _given(asked))
    folder = output if output is not None else _folder(request, roots)
    result = run_stage("evaluate", request, roots, folder)
    if folder is not None:
        console.note(f"results in {folder}")
    if as_json:
        console.print_json({key: value for key, value in result.items() if key != "markdown"})
    else:
        print(result["markdown"], end="")


def _name(name: str, roots: Roots) -> str:
    """Returns how the stage is told of a model: folders elsewhere by their absolute path."""
    path = Path(name).expanduser()
    known = not path.is_absolute() and any(
        (root / name).exists() for root in (roots.runs, roots.models)
    )
    if path.is_absolute() or (not known and path.is_dir()):
        return str(path.resolve())
    if name.startswith("."):
        raise NotFound(f"no folder {name}")
    return name


def _given(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that are given, at every depth."""
    found = {
        key: _given(value) if isinstance(value, dict) else value for key, value in asked.items()
    }
    return {key: value for key, value in found.items() if value is not None and value != {}}


def _unescaped(text: str) -> str:
    """Returns a text in which `\\n` and `\\t` stand for themselves, as shells hardly write them."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _folder(request: "EvaluateRequest | Any", roots: Roots) -> Path | None:
    """Returns the task folder of a run's evaluation: one that was not finished, else a new one."""
    from lectern_common.run.folder import RunFolder
    from lectern_common.stages.folder import TaskFolder

    if request.model.startswith("/"):
        return None
    run = RunFolder(roots.runs / request.model)
    if not run.spec_path.is_file():
        return None
    asked = json.loads(json.dumps(request.model_dump(mode="json")))
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    for path in sorted(run.tasks_path.glob(f"evaluate-*-{digest}"), reverse=True):
        task = TaskFolder(path)
        try:
            if not task.result_path.exists() and task.read_asked() == ("evaluate", asked):
                return path
        except (CorruptData, NotFound):
            continue
    return run.tasks_path / f"evaluate-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{digest}"
