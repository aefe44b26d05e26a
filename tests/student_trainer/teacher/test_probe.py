"""A teacher with inconsistent answers is found before the first step."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lectern_common.errors import TeacherError
from lectern_common.wire.formats import Representation
from lectern_models.loading import load_causal_lm
from student_trainer.batch import Batch
from student_trainer.targets import DenseTargets, HiddenTargets, TargetsProvider, TopKTargets
from student_trainer.teacher.local import InProcessTeacher
from student_trainer.teacher.probe import Answering, ProbeRows, probe_teacher
from student_trainer.teacher.remote import RemoteTeacher, connect_teacher
from tests.support.models import write_tiny_model
from tests.support.training.wire_teacher import Serving, WireTeacher, changed

VOCAB_SIZE = 40
KINDS = {
    "dense": Representation("dense"),
    "hidden": Representation("hidden"),
    "top_k": Representation("top_k", 5),
    "sampled": Representation("sampled", num_draws=20, seed=9),
}
ANSWERING = Answering(tuple(KINDS), VOCAB_SIZE, "float32", same_bytes=True)
TEMPERATURE = 2.0


def batch() -> Batch:
    """Three rows of 9 tokens; the first has no valid position, the second some."""
    inputs_BS = np.random.default_rng(3).integers(0, VOCAB_SIZE, (3, 9))
    labels_BS = np.roll(inputs_BS, -1, 1)
    labels_BS[0] = -100
    labels_BS[1, [0, 1, 5]] = -100
    return Batch(inputs_BS, labels_BS)


ROWS = ProbeRows.of_batch(batch())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> InProcessTeacher:
    folder = write_tiny_model(
        tmp_path_factory.mktemp("teacher"), vocab_size=VOCAB_SIZE + 3, hidden=16, layers=1
    )
    return InProcessTeacher(load_causal_lm(folder, "float32"), VOCAB_SIZE)


class Changing:
    """A teacher whose answers pass through `change(call number, kind, answer)`."""

    def __init__(self, teacher: TargetsProvider, change: Callable[[int, str, Any], Any]) -> None:
        self._teacher, self._change, self.calls = teacher, change, 0

    def score(
        self, sequences: Any, positions: Any, representation: Representation, temperature: float
    ) -> Any:
        self.calls += 1
        answer = self._teacher.score(sequences, positions, representation, temperature)
        return self._change(self.calls, representation.kind, answer)


def probed(
    teacher: TargetsProvider, kind: str, answering: Answering = ANSWERING, rows: ProbeRows = ROWS
) -> str:
    return probe_teacher(teacher, rows, KINDS[kind], TEMPERATURE, answering)


def test_rows_are_the_first_with_valid_positions_and_few_of_those() -> None:
    inputs_BS = batch().inputs_BS
    assert [row.tolist() for row in ROWS.sequences] == inputs_BS[1:].tolist()
    asked = [np.flatnonzero(asked_S).tolist() for asked_S in ROWS.positions]
    assert asked == [[2, 3, 6, 8], [0, 2, 5, 8]]
    assert [ROWS.place(index) for index in (0, 3, 4)] == [
        "row 0, position 2",
        "row 0, position 8",
        "row 1, position 0",
    ]
    turned, places = ROWS.turned()
    assert turned.sequences[0].tolist() == inputs_BS[2].tolist()
    assert places == [4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_a_consistent_teacher_passes(teacher: InProcessTeacher, kind: str) -> None:
    other = "dense" if kind == "top_k" else "top_k"
    words = f"{kind} at 8 positions is consistent and agrees with {other}"
    assert probed(teacher, kind) == words
    alone = replace(ANSWERING, offered=[kind])
    assert "no other to compare" in probed(teacher, kind, alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_consistent_teacher_passes_over_the_wire(tmp_path: Path, kind: str, dtype: str) -> None:
    with served(tmp_path, WireTeacher(dtype=dtype)) as (remote, _):
        answering = Answering.of_model(remote.model, VOCAB_SIZE, one_server=True)
        assert answering == replace(ANSWERING, dtype=dtype, offered=list(KINDS))
        assert f"{kind} at 8 positions is consistent and agrees" in probed(remote, kind, answering)


@contextmanager
def served(folder: Path, teacher: WireTeacher) -> Iterator[tuple[RemoteTeacher, Serving]]:
    with (
        Serving(teacher) as serving,
        connect_teacher(
            serving.address, VOCAB_SIZE, outage_budget_seconds=0, cache_root=folder
        ) as remote,
    ):
        yield remote, serving


def test_a_wrong_head_is_reported_with_position_and_both_numbers(
    teacher: InProcessTeacher,
) -> None:
    """As a wrong scale or soft-cap, or another model's rows, would do to `hidden`."""

    def half_the_head(_call: int, kind: str, answer: Any) -> Any:
        if kind != "hidden":
            return answer
        head = replace(answer.head, weight_VD=answer.head.weight_VD * 0.5)
        return HiddenTargets(answer.hidden_ND, head)

    sequences, positions = ROWS.sequences, ROWS.positions
    dense = teacher.score(sequences, positions, KINDS["dense"], TEMPERATURE)
    assert isinstance(dense, DenseTargets)
    right = torch.log_softmax(dense.logits_NV[0].double() / TEMPERATURE, 0)
    wrong = torch.log_softmax(dense.logits_NV[0].double() / 2 / TEMPERATURE, 0)
    token = int(right.argmax())
    with pytest.raises(TeacherError) as caught:
        probed(Changing(teacher, half_the_head), "hidden")
    assert str(caught.value) == (
        f"the teacher's answers are inconsistent at row 0, position 2, token {token} of the first "
        f"step: expected a log-probability of {right[token]:.5g} (T 2) in top_k, "
        f"got {wrong[token]:.5g}. Set another teacher.representation, or use another teacher"
    )


def shifted(field: str, by: float, call: int = 1) -> Callable[[int, str, Any], Any]:
    """Changes one field of one answer, at its second position."""

    def change(number: int, _kind: str, answer: Any) -> Any:
        if number != call:
            return answer
        values = getattr(answer, field).clone()
        values[1] += by
        return replace(answer, **{field: values})

    return change


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("top_k", shifted("log_normalizer_t_N", 0.1), r"position 3 .* a log-normaliser of .* rest"),
        ("top_k", shifted("log_rest_t_N", 1.0), r"position 3 .* a log-normaliser of"),
        ("hidden", shifted("hidden_ND", 1e-6, call=2), r"row 1, position 2 .* the same bytes"),
        ("dense", shifted("logits_NV", 1e-4, call=2), r"row 1, position 2 .* the same bytes"),
        ("sampled", shifted("log_probs_R", -1e-4, call=2), r"row 1, position 0 .* the same bytes"),
        ("sampled", shifted("counts_R", 1, call=2), r"row 1, position 0 .* the same bytes"),
        (
            "dense",
            shifted("log_normalizer_t_N", 5.0, call=3),
            r"position 3, token \d+ .* in top_k",
        ),
    ],
)
def test_inconsistent_answers_are_reported(
    teacher: InProcessTeacher, kind: str, change: Callable[[int, str, Any], Any], words: str
) -> None:
    with pytest.raises(TeacherError, match=words):
        probed(Changing(teacher, change), kind)


def test_draws_at_another_temperature_than_requested_are_refused(teacher: InProcessTeacher) -> None:
    def at_temperature_1(_call: int, kind: str, answer: Any) -> Any:
        if kind != "sampled":
            return answer
        rows_R = answer.row_of_record()
        dense = teacher.score(ROWS.sequences, ROWS.positions, KINDS["dense"], TEMPERATURE)
        assert isinstance(dense, DenseTargets)
        log_probs_NV = torch.log_softmax(dense.logits_NV, 1)
        return replace(answer, log_probs_R=log_probs_NV[rows_R, answer.ids_R])

    alike = replace(ANSWERING, same_bytes=False)
    with pytest.raises(TeacherError, match=r"a log-probability of .* \(T 2\) in "):
        probed(Changing(teacher, at_temperature_1), "sampled", alike)


def test_rows_in_another_order_than_requested_are_refused(teacher: InProcessTeacher) -> None:
    """A server that sorts the rows by a key of its own, whatever the requested order."""

    class Sorting:
        def score(
            self, sequences: Sequence[Any], positions: Sequence[Any], *rest: Any
        ) -> HiddenTargets:
            order = sorted(range(len(sequences)), key=lambda index: sequences[index].tolist())
            answer = teacher.score(
                [sequences[index] for index in order], [positions[index] for index in order], *rest
            )
            assert isinstance(answer, HiddenTargets)
            return answer

    for same_bytes in (True, False):
        with pytest.raises(TeacherError, match="position"):
            probed(Sorting(), "hidden", replace(ANSWERING, same_bytes=same_bytes))


def test_rounding_may_depend_on_the_batch_in_mode_throughput(teacher: InProcessTeacher) -> None:
    def rounded(call: int, _kind: str, answer: Any) -> Any:
        if call == 1:
            return answer
        if isinstance(answer, HiddenTargets):
            return replace(answer, hidden_ND=answer.hidden_ND.bfloat16().float())
        return answer

    with pytest.raises(TeacherError, match="the same bytes"):
        probed(Changing(teacher, rounded), "hidden")
    throughput = replace(ANSWERING, dtype="bfloat16", same_bytes=False)
    assert "is consistent" in probed(Changing(teacher, rounded), "hidden", throughput)


def test_top_k_of_every_token_has_no_rest_and_passes(teacher: InProcessTeacher) -> None:
    whole = Representation("top_k", VOCAB_SIZE)
    assert "agrees" in probe_teacher(teacher, ROWS, whole, TEMPERATURE, ANSWERING)
    answer = teacher.score(ROWS.sequences, ROWS.positions, whole, TEMPERATURE)
    assert isinstance(answer, TopKTargets)
    assert bool(answer.log_rest_t_N.isneginf().all())


def test_faults_that_every_reply_is_checked_for_are_found_in_the_probe(tmp_path: Path) -> None:
    """Not finite; draws that do not add up; a log-probability over 0."""

    def patched(place: int, value: float) -> Callable[[list[Any]], None]:
        def change(replies: list[Any]) -> None:
            piece = replies[1].piece
            data = bytearray(piece.payload)
            data[place : place + 4] = np.float32(value).tobytes()
            piece.payload = bytes(data)

        return change

    def miscounted(replies: list[Any]) -> None:
        piece = replies[1].piece
        data = bytearray(piece.payload)
        data[3] += 1
        piece.payload = bytes(data)

    cases = [
        ("hidden", patched(0, np.nan), "not finite"),
        ("dense", patched(4, np.inf), "not finite"),
        ("sampled", miscounted, "20 draws"),
        ("sampled", patched(4, 0.5), "sum to more than 1"),
    ]
    wire = WireTeacher()
    with served(tmp_path, wire) as (remote, serving):
        for kind, change, words in cases:
            serving.teacher.faults.append(recomputed(wire, change))
            with pytest.raises(TeacherError, match=words):
                probed(remote, kind)


def recomputed(wire: WireTeacher, change: Callable[[list[Any]], None]) -> Any:
    """Returns a change of a reply that also corrects the checksum, as if the server meant it."""

    def whole(replies: list[Any]) -> None:
        change(replies)
        crc = 0
        for reply in replies[1:-1]:
            crc = zlib.crc32(reply.piece.payload, crc)
        replies[-1].trailer.crc32 = crc

    return changed(wire, whole)
