"""Students, compared with transformers' own forward and float64 gradient descent."""

import itertools
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from lectern_common.errors import InvalidRequest, Misconfigured
from lectern_models.loading import load_causal_lm
from student_trainer.objective.loss import Objective, distillation_loss
from student_trainer.objective.reference import kd_logit_gradient, kd_loss, kd_step
from student_trainer.student.student import CausalStudent, FixtureStudent
from student_trainer.targets import DenseTargets
from student_trainer.teacher.local import FixtureTeacher, InProcessTeacher
from tests.support.models import ARCHITECTURES, write_tiny_model
from tests.support.training.parts import parts_of, settings_of, trained

torch.set_num_threads(1)

CPU = torch.device("cpu")
# hyperclovax multiplies its logits by what its config calls a divisor: no body and head fit.
SPLITTABLE = [name for name in ARCHITECTURES if name != "hyperclovax"]
SEQUENCES = [[5, 3, 90], [7], [1, 2, 3, 4, 5, 6, 96, 0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("student") / "qwen2", tied=True)


def test_uniform_student_moves_to_the_token_that_the_teacher_prefers():
    """F-DISTILL-STUDENT-001."""
    teacher, student = FixtureTeacher(16), FixtureStudent(16)
    before = student.logits_for_batch([[5]])
    step = kd_step(teacher, [[5]], [5], 4.0, 0.0, before)
    student.apply_kd_gradient([[5]], step.gradients, learning_rate=1.0)
    after = student.logits_for_batch([[5]])
    assert after[0][5] > before[0][5]
    assert all(after[0][token] < before[0][token] for token in range(16) if token != 5)


def test_each_of_ten_steps_lowers_the_loss():
    """F-DISTILL-STUDENT-002."""
    teacher, student = FixtureTeacher(16), FixtureStudent(16)
    losses = []
    for _ in range(10):
        step = kd_step(teacher, [[7]], [7], 4.0, 0.0, student.logits_for_batch([[7]]))
        losses.append(step.loss)
        student.apply_kd_gradient([[7]], step.gradients, learning_rate=0.5)
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]


def test_fixture_averages_over_the_rows_of_the_batch():
    student = FixtureStudent(2, initial_value=1.0)
    student.apply_kd_gradient([[0], [1], [1]], [[3.0, 0.0], [0.0, -6.0], [0.0, 0.0]], 0.5)
    assert student.logits_for_batch([[0], [1]]) == [[0.5, 2.0], [0.5, 2.0]]
    student.apply_kd_gradient([], [], 0.5)
    assert student.logits_for_batch([]) == []


def test_fixture_trains_through_the_objective_like_any_student():
    student = FixtureStudent(11)
    input_ids_BS = torch.tensor([[1, 2, 3], [4, 5, 6]])
    teacher_NV = torch.randn(6, 11, generator=torch.Generator().manual_seed(0))
    hidden_ND = student.hidden_states(input_ids_BS).flatten(0, 1)
    labels_N = input_ids_BS.flatten()
    loss = distillation_loss(
        hidden_ND, student.output_head(), labels_N, DenseTargets(teacher_NV), Objective(0.3, 2.0), 6
    )
    loss.total.backward()
    rows = [(np.zeros(11), teacher_NV[i].numpy(), int(labels_N[i]), 2.0, 0.3) for i in range(6)]
    assert loss.total.item() == pytest.approx(np.mean([kd_loss(*row) for row in rows]))
    expected = np.mean([kd_logit_gradient(*row) for row in rows], axis=0)
    assert [name for name, _ in student.named_parameters()] == ["logits_V"]
    assert list(student.state_dict()) == ["logits_V"]
    assert student.logits_V.grad is not None
    np.testing.assert_allclose(student.logits_V.grad, expected, atol=1e-6)


@pytest.mark.parametrize("architecture", SPLITTABLE)
def test_logits_equal_a_standalone_forward(tmp_path, architecture):
    """F-DISTILL-CUDA-STUDENT-001."""
    folder = write_tiny_model(tmp_path / architecture, architecture)
    student = CausalStudent.from_pretrained(folder, CPU)
    standalone = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert student.vocab_size == 97
    last = student.logits_for_batch(SEQUENCES)
    every = student.logits_per_position(SEQUENCES)
    for index, sequence in enumerate(SEQUENCES):
        with torch.no_grad():
            expected_SV = standalone(input_ids=torch.tensor([sequence])).logits[0]
        torch.testing.assert_close(torch.tensor(last[index]), expected_SV[-1], rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.from_numpy(every[index]), expected_SV, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", SPLITTABLE)
def test_gradients_of_all_parameters_equal_those_of_the_plain_model_in_float64(
    tmp_path, architecture
):
    """The embedding changes too, and a tied one gets both of its gradients."""
    folder = write_tiny_model(tmp_path / architecture, architecture, spread=0.1)
    student = CausalStudent.from_pretrained(folder, CPU)
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    if architecture == "mixtral":  # torch's grouped products know no float64
        exact.set_experts_implementation("eager")
    generator = torch.Generator().manual_seed(0)
    input_ids_BS = torch.randint(97, (2, 9), generator=generator)
    labels_N = torch.randint(97, (18,), generator=generator)
    teacher_NV = 2 * torch.randn(18, 97, generator=generator)
    hidden_ND = student.hidden_states(input_ids_BS).flatten(0, 1)
    objective = Objective(0.4, 2.0, chunk_tokens=5)
    head, targets = student.output_head(), DenseTargets(teacher_NV)
    distillation_loss(hidden_ND, head, labels_N, targets, objective, 18).total.backward()
    logits_NV = exact(input_ids=input_ids_BS).logits.flatten(0, 1)
    p_NV = torch.softmax(teacher_NV.double() / 2, -1)
    divergence = F.kl_div((logits_NV / 2).log_softmax(-1), p_NV, reduction="sum")
    (0.4 * F.cross_entropy(logits_NV, labels_N) + 0.6 * 4 * divergence / 18).backward()
    theirs = dict(exact.named_parameters())
    ours = dict(student.model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.grad is not None, name
        scale = theirs[name].grad.abs().max().item()
        error = (parameter.grad.double() - theirs[name].grad).abs().max().item()
        assert error < 2e-4 * scale + 2e-8, name
        # A key's bias shifts all scores of a query equally: its gradient is 0.
        assert scale > 1e-7 or name.endswith("k_proj.bias"), name


def test_tied_embeddings_stay_one_parameter(folder):
    student = CausalStudent.from_pretrained(folder, CPU)
    embeddings: Any = student.model.get_input_embeddings()
    head = student.output_head()
    assert head.weight_VD is embeddings.weight
    names = [name for name, _ in student.named_parameters()]
    assert not any("lm_head" in name for name in names)
    with torch.no_grad():
        before = student.logits_for_batch([[1, 2]])
        embeddings.weight.mul_(2.0)
    assert student.logits_for_batch([[1, 2]]) != before  # the head is live


@pytest.mark.parametrize("every_position", [False, True])
def test_apply_kd_gradient_is_a_descent_step_on_the_mean_over_all_given_rows(
    folder, every_position
):
    """Every row and position counts: compared with float64 descent on the plain model."""
    student = CausalStudent.from_pretrained(folder, CPU)
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    generator = np.random.default_rng(0)
    gradients = [
        generator.normal(size=(len(sequence), 97) if every_position else 97)
        for sequence in SEQUENCES
    ]
    num_rows = sum(gradient.reshape(-1, 97).shape[0] for gradient in gradients)
    student.apply_kd_gradient(SEQUENCES, gradients, learning_rate=0.05)
    for sequence, gradient in zip(SEQUENCES, gradients, strict=True):
        logits_SV = exact(input_ids=torch.tensor([sequence])).logits[0]
        rows = torch.from_numpy(gradient.reshape(-1, 97)) / num_rows
        logits_SV[-len(rows) :].backward(rows)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter -= 0.05 * parameter.grad
    before = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    for name, expected in exact.named_parameters():
        ours = student.model.get_parameter(name).detach()
        moved = (expected - before[name]).abs().max().item()
        assert moved > 0, name
        assert (ours - expected).abs().max().item() < 1e-4 * moved + 1e-7, name
        assert student.model.get_parameter(name).grad is None


def test_a_row_or_position_left_out_would_change_the_step(folder):
    generator = np.random.default_rng(1)
    gradients = [generator.normal(size=(len(sequence), 97)) for sequence in SEQUENCES]
    results = []
    for silenced in (None, (0, 0), (0, 2), (1, 0), (2, 4)):
        student = CausalStudent.from_pretrained(folder, CPU)
        changed = [gradient.copy() for gradient in gradients]
        if silenced is not None:
            changed[silenced[0]][silenced[1]] = 0
        student.apply_kd_gradient(SEQUENCES, changed, 0.05)
        results.append(np.concatenate([row.ravel() for row in student.logits_per_position([[1]])]))
    for index, result in enumerate(results):
        assert not any(np.array_equal(result, other) for other in results[:index])


def test_real_student_learns_the_fixture_teacher(folder):
    """F-DISTILL-STUDENT-002, with a real model."""
    student, teacher = CausalStudent.from_pretrained(folder, CPU), FixtureTeacher(97)
    losses = []
    for _ in range(10):
        rows = student.logits_for_batch(SEQUENCES)
        step = kd_step(teacher, SEQUENCES, [90, 7, 0], 4.0, 0.0, rows)
        losses.append(step.loss)
        student.apply_kd_gradient(SEQUENCES, step.gradients, learning_rate=0.02)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    "gradients",
    [
        [np.zeros(97)],
        [np.zeros(97), np.zeros(96), np.zeros(97)],
        [np.zeros((2, 97)), np.zeros(97), np.zeros(97)],
        [np.zeros(97), np.zeros((1, 1, 97)), np.zeros(97)],
    ],
)
def test_gradients_of_a_wrong_shape_are_refused_and_nothing_changes(folder, gradients):
    for student in (CausalStudent.from_pretrained(folder, CPU), FixtureStudent(97)):
        before = student.logits_for_batch([[1]])
        with pytest.raises(InvalidRequest) as refusal:
            student.apply_kd_gradient(SEQUENCES, gradients, 1.0)
        assert refusal.value.field == "gradients"
        assert student.logits_for_batch([[1]]) == before


@pytest.mark.parametrize("sequences", [[[]], [[97]], [[-1]]])
def test_ids_outside_the_students_vocabulary_are_refused(folder, sequences):
    student = CausalStudent.from_pretrained(folder, CPU)
    with pytest.raises(InvalidRequest):
        student.logits_for_batch(sequences)


def test_from_config_draws_the_same_float32_weights_from_the_same_seed(tmp_path):
    folder = write_tiny_model(tmp_path / "scratch", weights=False)
    first, again, other = (CausalStudent.from_config(folder, s, CPU) for s in (3, 3, 4))
    logits = [student.logits_for_batch([[1, 2]]) for student in (first, again, other)]
    assert logits[0] == logits[1] != logits[2]
    assert all(parameter.dtype == torch.float32 for parameter in first.parameters())
    assert all(parameter.requires_grad for parameter in first.parameters())


def test_bfloat16_weights_on_disk_become_float32_parameters(tmp_path):
    folder = write_tiny_model(tmp_path / "narrow", dtype="bfloat16")
    student = CausalStudent.from_pretrained(folder, CPU)
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    with pytest.raises(Misconfigured, match="float32"):
        CausalStudent(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16))


def test_bfloat16_compute_keeps_float32_parameters_and_gradients(folder):
    student = CausalStudent.from_pretrained(folder, CPU, "bfloat16")
    wide = CausalStudent.from_pretrained(folder, CPU, "float32")
    input_ids_BS = torch.tensor([[1, 2, 3, 4]])
    hidden = student.hidden_states(input_ids_BS)
    assert hidden.dtype == torch.bfloat16
    assert wide.hidden_states(input_ids_BS).dtype == torch.float32
    labels_N = torch.tensor([2, 3, 4, 5])
    loss = distillation_loss(
        hidden[0], student.output_head(), labels_N, None, Objective(1.0, 1.0), 4
    )
    loss.total.backward()
    expected = distillation_loss(
        wide.hidden_states(input_ids_BS)[0],
        wide.output_head(),
        labels_N,
        None,
        Objective(1.0, 1.0),
        4,
    )
    assert loss.total.item() == pytest.approx(expected.total.item(), rel=0.05)
    gradients = [cast(torch.Tensor, parameter.grad) for parameter in student.parameters()]
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert math.isfinite(sum(float(gradient.abs().sum()) for gradient in gradients))


def test_a_model_that_body_and_head_do_not_reproduce_is_refused(tmp_path):
    folder = write_tiny_model(tmp_path / "odd", "hyperclovax")
    with pytest.raises(Misconfigured, match="body and head differ"):
        CausalStudent.from_pretrained(folder, CPU)


def test_views_keep_the_training_mode_and_use_no_dropout(tmp_path):
    folder = write_tiny_model(tmp_path / "dropout", "gpt2", embd_pdrop=0.5, resid_pdrop=0.5)
    student = CausalStudent.from_pretrained(folder, CPU)
    student.train()
    first = student.logits_for_batch([[1, 2, 3]])
    assert student.training
    assert student.logits_for_batch([[1, 2, 3]]) == first
    student.eval()
    assert student.logits_for_batch([[1, 2, 3]]) == first


def gradients(student, seed=0):
    """Returns those of all parameters, in training mode, with dropout from that seed."""
    student.train()
    student.zero_grad()
    ids_BS = torch.randint(97, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(seed)
    hidden_ND = student.hidden_states(ids_BS).flatten(0, 1)
    loss = distillation_loss(
        hidden_ND, student.output_head(), ids_BS.flatten(), None, Objective(1.0, 1.0), 18
    )
    loss.total.backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()}


def activations_recomputed(student):
    """Returns whether the backward pass recomputes a layer, by its forwards in one step."""
    calls = []
    layer = next(module for module in student.modules() if type(module).__name__.endswith("MLP"))
    handle = layer.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients(student)
    handle.remove()
    return len(calls) == 2


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("qwen2", {"tied": True}),
        ("gpt2", {"embd_pdrop": 0.3, "resid_pdrop": 0.3, "attn_pdrop": 0.3}),
        ("mixtral", {}),
    ],
)
def test_recomputed_activations_give_the_same_gradients_bit_for_bit(
    tmp_path, architecture, settings
):
    folder = write_tiny_model(tmp_path / architecture, architecture, **settings)
    kept, recomputing = (CausalStudent.from_pretrained(folder, CPU) for _ in range(2))
    recomputing.checkpoint_activations()
    one, again, other = gradients(kept), gradients(recomputing), gradients(recomputing, seed=1)
    for name, gradient in one.items():
        assert torch.equal(again[name], gradient), name
    drops = architecture == "gpt2"
    assert any(not torch.equal(other[name], one[name]) for name in one) == drops
    if architecture != "mixtral":
        assert [activations_recomputed(student) for student in (kept, recomputing)] == [False, True]


def test_a_model_that_cannot_recompute_is_refused_by_name(folder):
    student = CausalStudent.from_pretrained(folder, CPU)
    student.model.supports_gradient_checkpointing = False
    with pytest.raises(Misconfigured, match=r"Qwen2For.*set device\.activation_checkpointing to f"):
        student.checkpoint_activations()
    assert not activations_recomputed(student)


def test_losses_in_bfloat16_stay_near_those_in_float32_and_parameters_stay_float32(folder):
    curves, computed = [], []
    for dtype in ("float32", "bfloat16"):
        student = CausalStudent.from_pretrained(folder, CPU, dtype)
        layer = student.model.model.layers[0].mlp.up_proj
        layer.register_forward_hook(lambda _layer, _given, output: computed.append(output.dtype))
        parts = parts_of(student)
        curves.append(trained(parts, settings_of(8, rate=3e-3)).curve("loss/ce"))
        states = [value for state in parts.optimizer.state.values() for value in state.values()]
        assert {tensor.dtype for tensor in (*student.parameters(), *states)} == {torch.float32}
    half = len(computed) // 2
    assert computed == half * [torch.float32] + half * [torch.bfloat16]
    wide, narrow = curves
    # 8 bits of mantissa: 0.4 % of a logit, far less of a mean loss, far more than in float32.
    assert narrow == pytest.approx(wide, rel=0.01)
    assert narrow != pytest.approx(wide, rel=1e-5)
    assert wide[-1] < wide[0] - 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bfloat16_on_cuda_follows_float32_on_the_cpu(folder):
    cuda, curves = torch.device("cuda", 0), []
    for device in (CPU, cuda):
        student = CausalStudent.from_pretrained(folder, device)
        parts = parts_of(student, device=device)
        curves.append(trained(parts, settings_of(8, rate=3e-3)).curve("loss/ce"))
        states = [value for state in parts.optimizer.state.values() for value in state.values()]
        kept = {(tensor.dtype, tensor.device) for tensor in (*student.parameters(), *states)}
        assert kept == {(torch.float32, device)}
    assert student.hidden_states(torch.tensor([[1, 2]], device=cuda)).dtype == torch.bfloat16
    assert curves[1] == pytest.approx(curves[0], rel=0.01)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "qwen2"])
def test_sequences_beyond_the_positions_are_refused_by_student_and_teacher(tmp_path, architecture):
    folder = write_tiny_model(tmp_path, architecture, max_positions=20)
    student = CausalStudent.from_pretrained(folder, torch.device("cpu"))
    teacher = InProcessTeacher(load_causal_lm(folder, "float32"))
    for asked in (student, teacher):
        assert len(asked.logits_for_batch([[5] * 20])) == 1
        with pytest.raises(InvalidRequest, match="a sequence of 21 tokens exceeds the 20 position"):
            asked.logits_for_batch([[5] * 21])
