"""top_k from a real server's model to the loss, against the model's own forward in float64.

Legend: N rows, V vocabulary, K top-k, O = K + 1 outcomes.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from lectern_common.wire.formats import Representation
from lectern_models.logits.output_head import OutputHead
from student_trainer.objective.loss import Objective, distillation_loss
from student_trainer.targets import TopKTargets
from student_trainer.teacher.remote import RemoteTeacher, connect_teacher
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.transformers import EngineSettings
from tests.support.models import write_tiny_model
from tests.support.servers import teacher_thread

torch.set_num_threads(1)

V = 97
SEQUENCES = [np.arange(1, 30, dtype=np.uint32), np.array([96, 5, 5, 0, 40], np.uint32)]
N = sum(len(sequence) for sequence in SEQUENCES)
EVERY = [np.ones(len(sequence), bool) for sequence in SEQUENCES]
DIVERGENCES = [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("teacher"), vocab_size=V, spread=0.5)


@pytest.fixture(scope="module")
def teacher(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteTeacher]:
    with (
        teacher_thread(
            transformers_engine.load(str(folder), EngineSettings(device="cpu"))
        ) as address,
        connect_teacher(address, V, cache_root=tmp_path_factory.mktemp("cache")) as remote,
    ):
        yield remote


@pytest.fixture(scope="module")
def own_logits_NV(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        rows = [model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0] for ids in SEQUENCES]
    return torch.cat(rows).double()


def student_logits() -> torch.Tensor:
    return 3 * torch.randn(N, V, generator=torch.Generator().manual_seed(5))


def loss_and_gradient(targets, temperature, name, beta) -> tuple[float, torch.Tensor]:
    logits_NV = student_logits().requires_grad_()
    loss = distillation_loss(
        logits_NV,
        OutputHead(torch.eye(V)),
        torch.zeros(N, dtype=torch.int64),
        targets,
        Objective(0.0, temperature, name, beta),
        N,
    )
    loss.total.backward()
    assert logits_NV.grad is not None
    return loss.total.item(), logits_NV.grad.double()


def exact(teacher_NV, k, temperature, name, beta) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Returns the mean loss, its gradient [N, V], and the log of the teacher's rest [N]."""
    student_NV = student_logits().double().requires_grad_()
    kept_NV = torch.zeros_like(teacher_NV).scatter_(1, teacher_NV.topk(k).indices, 1).bool()

    def log_outcomes(logits_NV):
        log_NV = F.log_softmax(logits_NV / temperature, -1)
        rest_N1 = log_NV.masked_fill(kept_NV, -math.inf).logsumexp(-1, True)
        return torch.cat([log_NV[kept_NV].view(N, k), rest_N1], 1)

    def kl(a_NO, b_NO):
        return F.kl_div(b_NO, a_NO, reduction="batchmean", log_target=True)

    p_NO, q_NO = log_outcomes(teacher_NV), log_outcomes(student_NV)
    if name == "jsd":
        m_NO = torch.logaddexp(math.log(beta) + p_NO, math.log(1 - beta) + q_NO)
        divergence = beta * kl(p_NO, m_NO) + (1 - beta) * kl(q_NO, m_NO)
    else:
        divergence = kl(p_NO, q_NO) if name == "forward_kl" else kl(q_NO, p_NO)
    (temperature**2 * divergence).backward()
    assert student_NV.grad is not None
    return (temperature**2 * divergence).item(), student_NV.grad, p_NO[:, -1]


@pytest.mark.parametrize(("name", "beta"), DIVERGENCES)
@pytest.mark.parametrize(("temperature", "k"), [(2.0, 4), (1.0, 8), (0.3, 8), (0.15, 8)])
def test_the_loss_over_the_wire_is_that_of_the_models_own_distribution(
    teacher: RemoteTeacher, own_logits_NV, temperature, k, name, beta
) -> None:
    """Within 1e-5 of the loss and 5e-5 of the gradient, down to a rest of 1e-12.

    The model's float32 logits differ by 1e-6 between forwards; the exponent divides that by T.
    """
    targets = teacher.score(SEQUENCES, EVERY, Representation("top_k", k), temperature)
    loss, gradient_NV = loss_and_gradient(targets, temperature, name, beta)
    exact_loss, exact_NV, log_rest_N = exact(own_logits_NV, k, temperature, name, beta)
    assert isinstance(targets, TopKTargets)
    log_served_N = (targets.log_rest_t_N - targets.log_normalizer_t_N).double()
    torch.testing.assert_close(log_served_N, log_rest_N, rtol=1e-5, atol=5e-5)
    if temperature == 0.15:
        assert log_rest_N.min() < math.log(1e-12)
    assert loss == pytest.approx(exact_loss, rel=1e-5)
    assert (gradient_NV - exact_NV).norm() < 5e-5 * exact_NV.norm()


@pytest.mark.parametrize(("name", "beta"), DIVERGENCES)
def test_the_whole_vocabulary_over_the_wire_equals_dense(
    teacher: RemoteTeacher, name, beta
) -> None:
    whole = teacher.score(SEQUENCES, EVERY, Representation("top_k", V), 2.0)
    dense = teacher.score(SEQUENCES, EVERY, Representation("dense"), 2.0)
    assert isinstance(whole, TopKTargets)
    assert whole.log_rest_t_N.isneginf().all()
    loss, gradient_NV = loss_and_gradient(whole, 2.0, name, beta)
    dense_loss, dense_NV = loss_and_gradient(dense, 2.0, name, beta)
    assert loss == pytest.approx(dense_loss, rel=1e-6)
    assert (gradient_NV - dense_NV).norm() < 1e-6 * dense_NV.norm()
