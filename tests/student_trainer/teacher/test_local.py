"""In-process teachers, compared with transformers' own forward and with each other."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lectern_common.errors import (
    InvalidRequest,
    Misconfigured,
    RepresentationNotOffered,
    TeacherError,
)
from lectern_common.wire.formats import FORMATS, Representation, top_k_record
from lectern_models.logits.sampled import uniforms
from student_trainer.objective.reference import kd_step
from student_trainer.targets import DenseTargets, HiddenTargets, SampledTargets, TopKTargets
from student_trainer.teacher import local
from student_trainer.teacher.local import FixtureTeacher, InProcessTeacher
from teacher_server.engine.fixture import FixtureEngine
from teacher_server.engine.seam import SequenceAsk
from tests.support.models import ARCHITECTURES, write_tiny_model

torch.set_num_threads(1)

SEQUENCES = [[5, 3, 90], [7], [1, 2, 3, 4, 5, 6, 96, 0]]


def arrays(sequences):
    return [np.array(sequence, np.uint32) for sequence in sequences]


def everywhere(sequences):
    return [np.ones(len(sequence), bool) for sequence in sequences]


def own_logits(model, sequence):
    with torch.no_grad():
        return model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0].float()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("teacher") / "qwen2")
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("vocab_size", [1, 2, 32, 5000])
def test_fixture_prefers_the_last_token(vocab_size):
    """F-DISTILL-FIXTURE-001."""
    teacher = FixtureTeacher(vocab_size)
    assert teacher.vocab_size() == vocab_size
    last = [0, vocab_size // 2, vocab_size - 1]
    rows = teacher.logits_for_batch([[0, token] for token in last])
    assert [int(np.argmax(row)) for row in rows] == last
    assert all(len(row) == vocab_size for row in rows)


def test_fixture_treats_a_token_outside_its_vocabulary_as_id_0():
    """F-DISTILL-FIXTURE-001."""
    rows = FixtureTeacher(8).logits_for_batch([[3, 8], [2**32 - 1]])
    assert [int(np.argmax(row)) for row in rows] == [0, 0]


def test_no_sequences_give_no_rows(model):
    """F-DISTILL-FIXTURE-001."""
    for teacher in (FixtureTeacher(8), InProcessTeacher(model)):
        assert teacher.logits_for_batch([]) == []
        assert teacher.logits_per_position([]) == []


def test_fixture_is_deterministic_and_looks_only_at_the_last_token():
    first, second = FixtureTeacher(16), FixtureTeacher(16)
    assert first.logits_for_batch([[1, 2, 5], [5]]) == second.logits_for_batch([[5], [9, 5]])


def test_fixture_answers_every_position_with_its_own_token():
    (rows_SV,) = FixtureTeacher(9).logits_per_position([[4, 8, 0, 12]])
    assert rows_SV.argmax(-1).tolist() == [4, 8, 0, 0]


@pytest.mark.parametrize("sequences", [[[]], [[1], []], [[-1]], [[2**32]]])
def test_sequences_without_usable_ids_are_refused(sequences):
    with pytest.raises(InvalidRequest) as refusal:
        FixtureTeacher(8).logits_for_batch(sequences)
    assert refusal.value.field == "input_ids"


def test_fixture_serves_top_k_and_says_why_it_has_no_hidden_states():
    teacher, ids = FixtureTeacher(6), arrays([[4, 2]])
    targets = teacher.score(ids, everywhere(ids), Representation("top_k", 3), 2.0)
    assert isinstance(targets, TopKTargets)
    assert targets.ids_NK.tolist() == [[4, 0, 1], [2, 0, 1]]
    assert targets.log_normalizer_t_N.tolist() == pytest.approx([math.log(math.e**5 + 5)] * 2)
    assert targets.log_rest_t_N.tolist() == pytest.approx([math.log(3)] * 2)
    with pytest.raises(RepresentationNotOffered, match="no hidden states"):
        teacher.score(ids, everywhere(ids), Representation("hidden"), 2.0)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_fixture_equals_the_fixture_engine_of_the_server(k):
    tokens, asked = np.array([4, 7, 0, 12], np.uint32), np.array([True, False, True, True])
    teacher, engine = FixtureTeacher(8), FixtureEngine(8)

    def served(representation):
        [rows] = engine.score([SequenceAsk(tokens, asked, 8, representation, 2.0)])
        return rows.payload

    dense = teacher.score([tokens], [asked], Representation("dense"), 2.0)
    assert isinstance(dense, DenseTargets)
    assert dense.logits_NV.numpy().tobytes() == bytes(served(Representation("dense")))
    top_k = teacher.score([tokens], [asked], Representation("top_k", k), 2.0)
    assert isinstance(top_k, TopKTargets)
    theirs = np.frombuffer(served(Representation("top_k", top_k=k)), top_k_record(k))
    assert np.array_equal(top_k.logits_NK, theirs["logits"])
    assert np.array_equal(top_k.ids_NK, theirs["ids"])
    for ours, name in (
        (top_k.log_rest_t_N, "log_rest_t"),
        (top_k.log_normalizer_t_N, "log_normalizer_t"),
    ):
        np.testing.assert_allclose(ours, theirs[name], rtol=2e-7)


def test_kd_step_runs_on_the_fixture():
    step = kd_step(FixtureTeacher(8), [[1, 5]], [5], 2.0, 0.0, [np.zeros(8)])
    assert step.gradients[0].argmin() == 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_process_logits_equal_the_models_own_forward(tmp_path, architecture):
    folder = write_tiny_model(tmp_path / architecture, architecture)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    teacher = InProcessTeacher(AutoModelForCausalLM.from_pretrained(folder))
    last = teacher.logits_for_batch(SEQUENCES)
    for index, rows_SV in enumerate(teacher.logits_per_position(SEQUENCES)):
        expected_SV = own_logits(model, SEQUENCES[index])
        torch.testing.assert_close(torch.from_numpy(rows_SV), expected_SV, rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.tensor(last[index]), expected_SV[-1], rtol=0, atol=1e-6)


def test_positions_are_answered_in_request_order(model):
    masks = [np.array([True, False, True]), np.array([False]), np.arange(8) == 6]
    teacher = InProcessTeacher(model)
    targets = teacher.score(arrays(SEQUENCES), masks, Representation("dense"), 1.0)
    expected = [own_logits(model, SEQUENCES[s])[p] for s, p in ((0, 0), (0, 2), (2, 6))]
    assert isinstance(targets, DenseTargets)
    torch.testing.assert_close(targets.logits_NV, torch.stack(expected), rtol=0, atol=1e-6)


def test_all_representations_come_from_the_same_logits(model):
    teacher = InProcessTeacher(model, vocab_size=80)
    sequences = arrays([[5, 3, 79], [1, 2]])
    asked = (sequences, everywhere(sequences))
    dense = teacher.score(*asked, Representation("dense"), 1.0)
    hidden = teacher.score(*asked, Representation("hidden"), 1.0)
    top_k = teacher.score(*asked, Representation("top_k", 80), 3.0)
    assert isinstance(dense, DenseTargets)
    assert isinstance(hidden, HiddenTargets)
    assert isinstance(top_k, TopKTargets)
    assert dense.logits_NV.shape == (5, 80)
    projected = hidden.head.logits(hidden.hidden_ND)
    torch.testing.assert_close(projected, dense.logits_NV, rtol=0, atol=1e-6)
    in_place_NV = torch.empty(5, 80).scatter_(1, top_k.ids_NK, top_k.logits_NK)
    assert torch.equal(in_place_NV, dense.logits_NV)
    assert top_k.log_rest_t_N.isneginf().all()
    exact_N = (dense.logits_NV.double() / 3).logsumexp(-1)
    torch.testing.assert_close(top_k.log_normalizer_t_N.double(), exact_N, rtol=1e-6, atol=0)
    assert not dense.logits_NV.requires_grad
    few = teacher.score(*asked, Representation("top_k", 7), 3.0)
    assert isinstance(few, TopKTargets)
    rest_NV = dense.logits_NV.double().scatter(1, top_k.ids_NK[:, :7], -math.inf) / 3
    torch.testing.assert_close(few.log_rest_t_N.double(), rest_NV.logsumexp(-1), rtol=1e-6, atol=0)


def draws_by_position(targets):
    """Returns (ids, counts, log-probabilities) of each row."""
    assert isinstance(targets, SampledTargets)
    columns = (targets.ids_R, targets.counts_R, targets.log_probs_R)
    return [
        tuple(column[start:stop].tolist() for column in columns)
        for start, stop in itertools.pairwise(targets.row_starts)
    ]


def by_inverse_cdf(logits_V, uniforms_U, temperature):
    weights_V = np.exp((logits_V - logits_V.max()) / temperature)
    cdf_V = np.cumsum(weights_V) / weights_V.sum()
    ids, counts = np.unique(np.searchsorted(cdf_V, uniforms_U, side="right"), return_counts=True)
    log_probs = np.log(weights_V[ids] / weights_V.sum())
    return ids.tolist(), counts.tolist(), pytest.approx(log_probs.tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", ["in_process", "fixture"])
def test_sampled_rows_are_inverse_cdf_draws_by_the_uniforms_of_seed_and_prefix(model, kind):
    """With 70 positions, so that more than one chunk of rows is drawn."""
    teacher = InProcessTeacher(model, 80) if kind == "in_process" else FixtureTeacher(80)
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, 80, length).astype(np.uint32) for length in (70, 1, 9)]
    asked = [np.ones(70, bool), np.array([False]), generator.random(9) < 0.5]
    sampled = Representation("sampled", num_draws=30, seed=11)
    targets = teacher.score(ids, asked, sampled, 2.5)
    dense = teacher.score(ids, asked, Representation("dense"), 1.0)
    assert isinstance(targets, SampledTargets)
    assert isinstance(dense, DenseTargets)
    uniforms_NU = np.concatenate(
        [uniforms(11, tokens, mask, 30) for tokens, mask in zip(ids, asked, strict=True)]
    )
    logits_NV = dense.logits_NV.double().numpy()
    assert draws_by_position(targets) == [
        by_inverse_cdf(*row, 2.5) for row in zip(logits_NV, uniforms_NU, strict=True)
    ]
    assert (targets.num_draws, targets.temperature, targets.vocab_size) == (30, 2.5, 80)


@pytest.mark.parametrize("kind", ["in_process", "fixture"])
def test_draws_of_a_position_do_not_depend_on_other_positions(model, kind):
    teacher = InProcessTeacher(model) if kind == "in_process" else FixtureTeacher(97)
    sampled = Representation("sampled", num_draws=40, seed=3)
    sequences = arrays(SEQUENCES)
    together = draws_by_position(teacher.score(sequences, everywhere(sequences), sampled, 2.0))
    alone = []
    for sequence in sequences:
        for position in range(len(sequence)):
            mask = np.arange(len(sequence)) == position
            alone += draws_by_position(teacher.score([sequence], [mask], sampled, 2.0))
    # A row of logits computed alone differs in its last bit, but the ids and counts do not.
    assert [row[:2] for row in alone] == [row[:2] for row in together]
    again = draws_by_position(
        teacher.score(sequences[::-1], everywhere(sequences[::-1]), sampled, 2.0)
    )
    assert again == together[4:] + together[3:4] + together[:3]
    other = draws_by_position(
        teacher.score(sequences, everywhere(sequences), replace(sampled, seed=4), 2.0)
    )
    assert all(theirs != ours for theirs, ours in zip(other, together, strict=True))


def test_an_answer_depends_only_on_its_own_sequence(model):
    teacher = InProcessTeacher(model)
    together = teacher.logits_for_batch(SEQUENCES)
    assert together == [teacher.logits_for_batch([sequence])[0] for sequence in SEQUENCES]


def test_bfloat16_teacher_gives_float32_logits_of_its_bfloat16_states(tmp_path):
    folder = write_tiny_model(tmp_path / "narrow")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    teacher = InProcessTeacher(model)
    ids = arrays(SEQUENCES[:1])
    targets = teacher.score(ids, everywhere(ids), Representation("hidden"), 1.0)
    assert isinstance(targets, HiddenTargets)
    assert targets.hidden_ND.dtype == torch.bfloat16
    (rows_SV,) = teacher.logits_per_position(SEQUENCES[:1])
    exact_SV = targets.hidden_ND.double() @ model.lm_head.weight.double().T
    np.testing.assert_allclose(rows_SV, exact_SV.detach().numpy(), rtol=0, atol=1e-5)
    # The model's own logits are rounded to bfloat16, so they are further off than float32's.
    own_SV = own_logits(model, SEQUENCES[0])
    assert (own_SV - exact_SV).abs().max() > 1e-3


def test_a_model_that_cannot_be_split_serves_its_own_logits_and_no_hidden_states(tmp_path):
    folder = write_tiny_model(tmp_path / "odd", "hyperclovax")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    teacher = InProcessTeacher(model)
    ids = arrays(SEQUENCES[:1])
    with pytest.raises(RepresentationNotOffered, match="differ from the model's own logits"):
        teacher.score(ids, everywhere(ids), Representation("hidden"), 1.0)
    (rows_SV,) = teacher.logits_per_position(SEQUENCES[:1])
    assert np.array_equal(rows_SV, own_logits(model, SEQUENCES[0]).numpy())
    with pytest.raises(Misconfigured, match="load it in float32"):
        InProcessTeacher(model.to(torch.bfloat16))


def test_logits_that_are_not_finite_are_refused(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path / "nan"))
    teacher = InProcessTeacher(model)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(TeacherError, match="not finite"):
        teacher.logits_for_batch([[1, 2]])


@pytest.mark.parametrize(
    ("representation", "error"),
    [
        (Representation("top_k", 0), InvalidRequest),
        (Representation("top_k", 98), InvalidRequest),
        (Representation("top_k"), InvalidRequest),
        (Representation("sampled"), InvalidRequest),
        (Representation("sampled", num_draws=0), InvalidRequest),
        (Representation("sampled", num_draws=257), InvalidRequest),
    ],
)
def test_representations_that_are_not_offered_are_refused(model, representation, error):
    ids = arrays([[1]])
    with pytest.raises(error):
        InProcessTeacher(model).score(ids, everywhere(ids), representation, 1.0)
    with pytest.raises(error):
        FixtureTeacher(97).score(ids, everywhere(ids), representation, 1.0)


@pytest.mark.parametrize("vocab_size", [0, 98])
def test_a_vocabulary_wider_than_the_teachers_is_refused(model, vocab_size):
    with pytest.raises(InvalidRequest):
        InProcessTeacher(model, vocab_size)


def test_a_model_in_this_process_makes_every_format() -> None:
    """From hidden states directly, or by the table of what is made of logits."""
    assert {*local._OF_LOGITS, "hidden"} == set(FORMATS)
