"""S9: rows of data that are not documents, and rows of tokens that the student lacks."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from faults.models import write_model
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs.datasets import prepare, prepared
from faults.trainer.runs.run import Home, Trainer
from lectern_common.run.status import RunState

_ROWS = 2000
_MAX_DOCUMENT_BYTES = 1 << 20
# Each kind of broken row, and the words that must name it.
_BROKEN: dict[str, tuple[bytes, str]] = {
    "no JSON": (b'{"text": "cut of', "not JSON"),
    "a misnamed field": (b'{"txet": "a text"}', "no text under 'text'"),
    "a number": (b'{"text": 7}', "no text under 'text'"),
    "a list": (b'["a text"]', "no text under 'text'"),
    "a lone surrogate": (b'{"text": "\\ud800"}', "surrogate"),
    "bytes that are no UTF-8": (b'{"text": "\xff\xfe"}', ""),
    "JSON without end": (b"[" * 100_000, "not JSON"),
    "10 MB": (b'{"text": "' + b"x" * 10_000_000 + b'"}', "larger than"),
}
_EMPTY: dict[str, bytes] = {
    "an empty line": b"",
    "an empty text": b'{"text": ""}',
    "null": b'{"text": null}',
}


def bad_rows(stage: Stage) -> Tally:
    """S9: broken rows and bad ids: named under the limit; over it, nothing is made."""
    tally = Tally()
    home = stage.folder / "home"
    tokenizer = prepared(home, "pages") / "tokenizer.json"
    draw = random.Random(0)  # noqa: S311 - where they are
    _under_the_cap(stage, tally, home, tokenizer, draw)
    for what, (row, says) in list(_BROKEN.items())[:: stage.tries(1, 4)]:
        stage.say(f"over the limit: {what}")
        problem = _over_the_cap(stage, home, tokenizer, row, says)
        tally.count(not problem, f"over the limit, {what}: {problem}")
    _bad_ids(stage, tally)
    tally.figure = (
        "each broken row is named with number and reason, and left out; over the limit, count and "
        "first rows are named and nothing is made; the same for rows of unknown ids"
    )
    return tally


def _under_the_cap(
    stage: Stage, tally: Tally, home: Path, tokenizer: Path, draw: random.Random
) -> None:
    """Prepares one row of each kind among good rows: all are named, good rows unchanged."""
    stage.say("one of each kind")
    good = list(_good_rows(_ROWS))
    broken = {what: row for what, (row, _) in _BROKEN.items()} | _EMPTY
    places = sorted(draw.sample(range(1, _ROWS), len(broken)))
    rows = list(good)
    for place, row in zip(places, broken.values(), strict=True):
        rows[place] = row
    kept = [row for place, row in enumerate(rows) if place not in places]
    made = prepare(
        home,
        [_written(stage, rows, "mixed.jsonl")],
        "mixed",
        *_options(tokenizer),
        sabotage=stage.sabotage,
    )
    alone = prepare(
        home,
        [_written(stage, kept, "mixed.jsonl")],
        "alone",
        *_options(tokenizer),
        sabotage=stage.sabotage,
    )
    named = {entry["name"]: entry for entry in json.loads(made.stdout or "{}").get("left_out", [])}
    for place, what in zip(places, broken, strict=True):
        entry = named.get(f"mixed.jsonl#{place + 1}", {})
        says = _BROKEN[what][1] if what in _BROKEN else "empty"
        tally.count(
            bool(entry) and says in entry["reason"],
            f"{what} in row {place + 1}: {entry or made.stderr[-300:]}",
        )
    tally.require(len(named) == len(broken), f"{len(named)} rows are named; expected {len(broken)}")
    shards = [(home / "data" / name / "shard-00000.bin") for name in ("mixed", "alone")]
    same = all(path.exists() for path in shards) and len({p.read_bytes() for p in shards}) == 1
    tally.require(same and not alone.returncode, "the broken rows changed the good ones")


def _over_the_cap(stage: Stage, home: Path, tokenizer: Path, row: bytes, says: str) -> str:
    """Returns "" if more than one broken row in a hundred is refused."""
    rows = list(_good_rows(200))
    for place in (7, 50, 90):
        rows[place] = row
    name = f"refused-{stage.new_folder().name}"
    path = _written(stage, rows, "many.jsonl")
    done = prepare(home, [path], name, *_options(tokenizer), sabotage=stage.sabotage)
    if not done.returncode:
        return "it was made anyway"
    expected = ("3 of 200", "many.jsonl#8", "many.jsonl#51", "many.jsonl#91", says)
    missing = [words for words in expected if words not in done.stderr.replace("\n", " ")]
    if missing:
        return f"it does not say {missing[0]!r}: {done.stderr[-300:]}"
    return "something was made" if (home / "data" / name).exists() else ""


def _good_rows(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield json.dumps({"text": f"Row {number} of those that are as they should be."}).encode()


def _written(stage: Stage, rows: list[bytes], name: str) -> Path:
    path = stage.new_folder() / name
    path.write_bytes(b"\n".join(rows) + b"\n")
    return path


def _options(tokenizer: Path) -> tuple[str, ...]:
    return (
        *("--tokenizer", str(tokenizer)),
        *("--validation-fraction", "0"),
        *("--max-document-bytes", str(_MAX_DOCUMENT_BYTES)),
    )


_SEQ_LEN = 8


def _bad_ids(stage: Stage, tally: Tally) -> None:
    """Trains on data with few rows, then many, of ids that the student lacks."""
    home = Home(stage)
    folder = prepared(home.path, "few-ids")
    ids = sorted(json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"].values())
    # The last merges have the rarest ids.
    for width, is_refused in ((ids[-1], False), (ids[-1] // 2, True)):
        stage.say(f"a student with {width} ids")
        model = write_model(
            home.roots.models / f"ids-{width}", vocab_size=width, layers=1, weights=False
        )
        run = home.folder_of(
            student={"config": model.name},
            data={
                "kind": "shards",
                "path": "few-ids",
                "seq_len": _SEQ_LEN,
                "max_bad_rows_fraction": 0.2,
            },
            schedule={"steps": 3, "warmup_steps": 0},
        )
        trainer = Trainer(stage, home, run, forked=True)
        try:
            exit_status = trainer.wait()
        finally:
            trainer.kill()
        status = trainer.status
        if is_refused:
            survived = (
                exit_status == 1
                and status is not None
                and status.reason == "incompatible"
                and "rows" in str(status.message)
                and "the first are rows" in str(status.message)
            )
        else:
            survived = trainer.status_is(RunState.SUCCEEDED) and "rows_left_out" in trainer.log
        tally.count(survived, f"a student with {width} ids: status {exit_status}, {status}")
