"""T16, T18 and T19: out of memory, values that are not finite, batch neighbours."""

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from faults.models import VOCAB_SIZE, write_model
from faults.row import Tally
from faults.stage import Stage
from faults.teacher.clients.asking import Refusal, ask, connect, request, score, shown, stats

_ALONE = ("--threads", "1", "--cache-bytes", "0")
_UNMEASURED = ("unmeasured",)
Answer = list[bytes] | Refusal

T16_MEMORY_TOKENS = 256


def out_of_memory(stage: Stage) -> Tally:
    """T16: batches and single sequences of more tokens than memory can hold."""
    tally = Tally()
    model = write_model(stage.folder / "model")
    draw = np.random.default_rng(0)
    options = ("--model", str(model), *_ALONE, "--mode", "throughput", "--batch-tokens", "2048")
    split = 0
    with stage.server(*options, faults=(*_UNMEASURED, f"memory={T16_MEMORY_TOKENS}")) as server:
        for number in range(stage.tries(20, 4)):
            stage.say(f"batch {number + 1}")
            # The batch is four times what fits; each sequence fits, except the last request's.
            sequences = draw.integers(0, VOCAB_SIZE, (32, 32)).tolist()
            too_long = draw.integers(0, VOCAB_SIZE, (1, T16_MEMORY_TOKENS + 44)).tolist()
            alone = [score(server.address, request([one], "hidden")) for one in sequences[:2]]
            before = stats(server.address).forwards
            together, refused = _at_once(
                server.address,
                [
                    request(sequences, "hidden", run_id="batch"),
                    request(too_long, "hidden", run_id="too-long"),
                ],
            )
            split += stats(server.address).forwards - before
            answered = not isinstance(together, Refusal) and len(together) == 32 * 32
            tally.count(
                answered and _near(alone, together),
                f"the batch: {shown(together)}",
            )
            tally.count(
                isinstance(refused, Refusal)
                and refused.code == "RESOURCE_EXHAUSTED"
                and refused.trailing.get("lectern-reason") == "teacher_out_of_memory",
                f"the sequence that does not fit: {shown(refused)}",
            )
        tally.require(server.alive, "the server crashed")
    tally.figure = (
        f"batches of {32 * 32} tokens, with memory for {T16_MEMORY_TOKENS}, were computed in "
        f"{split / max(1, tally.tries / 2):.1f} parts; only what never fits was refused"
    )
    return tally


def _near(alone: Sequence[Answer], together: Any) -> bool:
    """Compares the hidden states of the first sequences, alone and in the batch."""
    own = b"".join(row for answer in alone if not isinstance(answer, Refusal) for row in answer)
    wide = b"".join(together)[: len(own)]
    own_values, values = (np.frombuffer(data, "<f4") for data in (own, wide))
    return len(own) > 0 and bool(np.allclose(own_values, values, atol=1e-3))


_BAD = {13: float("nan"), 14: float("inf")}
_KINDS: dict[str, dict[str, Any]] = {
    "hidden": {},
    "dense": {},
    "top_k": {"top_k": 5},
    "sampled": {"num_draws": 8},
}


def not_finite(stage: Stage) -> Tally:
    """T18: a model whose hidden states are NaN or infinite after certain tokens."""
    tally = Tally()
    model = write_model(stage.folder / "model", bad_tokens=_BAD)
    good = [[1, 2, 3, 4, 5], [6, 7, 8]]
    with stage.server("--model", str(model), "--threads", "1", faults=_UNMEASURED) as server:
        expected = {
            kind: score(server.address, request(good, kind, **extra))
            for kind, extra in _KINDS.items()
        }
        for turn in range(stage.tries(5, 1)):
            for kind, extra in _KINDS.items():
                for token in _BAD:
                    stage.say(f"{kind}, token {token}, turn {turn + 1}")
                    bad = [1, 2, token, 4 + turn, 5]
                    answers = _at_once(
                        server.address,
                        [
                            request([bad], kind, run_id="bad", **extra),
                            request([good[0], bad], kind, run_id="mixed", **extra),
                            request(good, kind, run_id="good", **extra),
                        ],
                    )
                    for answer in answers[:2]:
                        tally.count(
                            isinstance(answer, Refusal) and answer.code == "DATA_LOSS",
                            f"{kind} that is not finite was answered: {shown(answer)}",
                        )
                    tally.count(
                        answers[2] == expected[kind], f"{kind}: a neighbour's answer changed"
                    )
        tally.require(server.alive, "the server crashed")
    tally.figure = "NaN and infinity are DATA_LOSS in all representations; neighbours unchanged"
    return tally


def _at_once(address: str, messages: Sequence[Any]) -> list[Answer]:
    """Sends all requests at the same time, each over its own connection."""
    answers: list[Answer] = [[] for _ in messages]

    def one(index: int) -> None:
        answers[index] = score(address, messages[index])

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(messages))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


# With a remainder of every size beside blocks of 16, 32 and 64 rows.
_LENGTHS = (1, 2, 5, 16, 17, 31, 32, 33, 64, 67, 100)
# Positions asked of each sequence; all if it has fewer.
_ASKED = (1, 2, 3, 4, 7, 11, 33, 100)


def other_company(stage: Stage) -> Tally:
    """T19: the same sequences alone, and batched, cut and asked for in other ways."""
    tally = Tally()
    for threads in ("1", "2"):
        for dtype in ("float32", "bfloat16"):
            model = write_model(stage.folder / f"{dtype}-{threads}", dtype=dtype, hidden=64)
            options = ("--model", str(model), "--threads", threads, "--cache-bytes", "0")
            with stage.server(*options, faults=_UNMEASURED) as server:
                what = f"{dtype}, {threads} threads"
                alone = _Alone.answered(stage, server.address, tally, what)
                _compare_mixes(alone)
                _compare_asked(alone)
    tally.figure = (
        f"{tally.survived} answers in other batches, of other positions and in other requests are "
        "byte-equal to those of whole sequences alone (float32 and bfloat16, one and two threads, "
        "cache off, no two equal sequences at once)"
    )
    return tally


@dataclass(frozen=True)
class _Alone:
    """A server's answers about whole sequences, one at a time, to compare others with.

    `rows` are by representation and index of the sequence.
    """

    stage: Stage
    address: str
    tally: Tally
    what: str
    targets: list[list[int]]
    rows: dict[tuple[str, int], list[bytes]]

    @classmethod
    def answered(cls, stage: Stage, address: str, tally: Tally, what: str) -> "_Alone":
        draw = random.Random(0)  # noqa: S311 - test data, not a secret
        targets = [[draw.randrange(VOCAB_SIZE) for _ in range(length)] for length in _LENGTHS]
        rows: dict[tuple[str, int], list[bytes]] = {}
        with connect(address) as channel:
            for kind, extra in _KINDS.items():
                for index, target in enumerate(targets):
                    answer = ask(channel, request([target], kind, **extra))
                    if isinstance(answer, Refusal):
                        raise RuntimeError(f"a sequence alone was refused: {shown(answer)}")
                    rows[kind, index] = answer
        return cls(stage, address, tally, what, targets, rows)


def _compare_asked(alone: _Alone) -> None:
    """Asks for some positions of all sequences, in one request and in one each."""
    draw = np.random.default_rng(1)
    for count in _ASKED[: alone.stage.tries(len(_ASKED), 2)]:
        alone.stage.say(f"{alone.what}, {count} positions")
        masks = [_few(draw, len(target), count) for target in alone.targets]
        for kind, extra in _KINDS.items():
            wanted = [
                alone.rows[kind, index][place]
                for index, mask in enumerate(masks)
                for place in np.flatnonzero(mask)
            ]
            whole = request(alone.targets, kind, mask=np.concatenate(masks), **extra)
            with connect(alone.address) as channel:
                together = ask(channel, whole)
                parts = [
                    ask(channel, request([target], kind, mask=mask, **extra))
                    for target, mask in zip(alone.targets, masks, strict=True)
                ]
            what = f"{alone.what} {kind}: {count} positions differ"
            alone.tally.count(together == wanted, f"{what}, together")
            cut = [row for part in parts if not isinstance(part, Refusal) for row in part]
            alone.tally.count(cut == wanted, f"{what}, one by one")


def _few(draw: np.random.Generator, length: int, count: int) -> npt.NDArray[np.bool_]:
    """Returns a mask of `count` positions drawn from `length`; all of them if there are fewer."""
    mask = np.zeros(length, bool)
    mask[draw.permutation(length)[:count]] = True
    return mask


def _compare_mixes(alone: _Alone) -> None:
    """Asks for all sequences at once, among others of the same and other runs."""
    draw = random.Random(0)  # noqa: S311 - test data, not a secret
    for turn in range(alone.stage.tries(12, 3)):
        alone.stage.say(f"{alone.what}, mix {turn + 1}")
        kind = list(_KINDS)[turn % len(_KINDS)]
        requests, places = _mix(draw, alone.targets, kind)
        for place, answer in zip(places, _at_once(alone.address, requests), strict=True):
            index, first_row = place
            wanted = alone.rows[kind, index]
            same = (
                not isinstance(answer, Refusal)
                and answer[first_row : first_row + len(wanted)] == wanted
            )
            what = f"{alone.what} {kind}: {_LENGTHS[index]} tokens differ in a batch"
            alone.tally.count(same, what)


def _mix(
    draw: random.Random, targets: list[list[int]], kind: str
) -> tuple[list[Any], list[tuple[int, int]]]:
    """Returns requests of several runs, and the place of each target: (index, first row)."""
    requests: list[Any] = []
    places: list[tuple[int, int]] = []
    for index in draw.sample(range(len(targets)), len(targets)):
        others = [
            [draw.randrange(VOCAB_SIZE) for _ in range(_length_of_company(draw, index))]
            for _ in range(draw.randrange(8))
        ]
        before = others[: len(others) // 2]
        sequences = [*before, targets[index], *others[len(before) :]]
        run_id = f"run-{len(requests) % 3}"
        requests.append(request(sequences, kind, run_id=run_id, **_KINDS[kind]))
        places.append((index, sum(map(len, before))))
    return requests, places


def _length_of_company(draw: random.Random, index: int) -> int:
    """Returns often the same length, which may be batched together; else any."""
    return _LENGTHS[index] if draw.random() < 0.6 else draw.choice(_LENGTHS)
