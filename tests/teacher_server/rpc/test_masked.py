"""A teacher with a masked vocabulary (logits of -inf), over a socket, in every representation."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lectern_common.errors import Incompatible, InvalidRequest, TeacherError
from lectern_common.wire.formats import Representation
from lectern_models.loading import load_causal_lm
from lectern_models.logits.output_head import OutputHead
from student_trainer.objective.loss import Objective, distillation_loss
from student_trainer.objective.reference import kd_loss
from student_trainer.targets import SampledTargets, TargetsProvider
from student_trainer.teacher.local import InProcessTeacher
from student_trainer.teacher.probe import Answering, ProbeRows, probe_teacher
from student_trainer.teacher.remote import connect_teacher
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.transformers import EngineSettings
from tests.support.models import write_tiny_model
from tests.support.servers import teacher_thread

V, S = 61, 9
MASKED = [0, 17, 58, 59, 60]
IDS = [np.random.default_rng(4).integers(1, 17, S).astype(np.uint32)]
EVERYWHERE = [np.ones(S, bool)]
KINDS = {
    "dense": Representation("dense"),
    "hidden": Representation("hidden"),
    "top_k": Representation("top_k", 8),
    "all but the masked": Representation("top_k", V - len(MASKED)),
    "into the masked": Representation("top_k", V - 2),
    "sampled": Representation("sampled", num_draws=40, seed=5),
}


def write_masked_model(folder: Path, value: float = -math.inf, ids: list[int] = MASKED) -> Path:
    """Writes a model whose head has a bias, with `value` in it at these ids."""
    write_tiny_model(folder, "phi", vocab_size=V)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.bias"][ids] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masked_model(tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="module", params=["served", "in process"])
def teacher(request: pytest.FixtureRequest, folder: Path) -> Iterator[TargetsProvider]:
    if request.param == "in process":
        yield InProcessTeacher(load_causal_lm(folder, "float32"))
        return
    engine = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    assert engine.facts.offers_hidden
    with teacher_thread(engine) as address, connect_teacher(address, vocab_size=V) as remote:
        yield remote


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_models_own_logits(
    teacher: TargetsProvider, folder: Path, kind: str
) -> None:
    representation, temperature = KINDS[kind], 1.5
    targets = teacher.score(IDS, EVERYWHERE, representation, temperature)
    student_SV = torch.randn(S, V, generator=torch.Generator().manual_seed(1))
    head, labels_S = OutputHead(torch.eye(V)), torch.arange(S) + 1
    loss = distillation_loss(student_SV, head, labels_S, targets, Objective(0.3, temperature), S)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        own_SV = model(torch.from_numpy(IDS[0].astype(np.int64))[None]).logits[0].double().numpy()
    assert np.isneginf(own_SV[:, MASKED]).all()
    draws = None
    if isinstance(targets, SampledTargets):
        ids = [targets.rows(row, row + 1) for row in range(S)]
        draws = [torch.repeat_interleave(row.ids_R, row.counts_R).tolist() for row in ids]
        assert not set(MASKED) & {token for row in draws for token in row}
    losses = [
        kd_loss(
            student_SV[row].numpy(),
            own_SV[row],
            row + 1,
            temperature,
            0.3,
            top_k=representation.top_k,
            draws=None if draws is None else draws[row],
        )
        for row in range(S)
    ]
    assert loss.total.item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("kind", ["dense", "hidden", "into the masked"])
def test_reverse_kl_from_it_is_refused_with_the_reason(teacher: TargetsProvider, kind: str) -> None:
    targets = teacher.score(IDS, EVERYWHERE, KINDS[kind], 1.0)
    student_SV = torch.randn(S, V, generator=torch.Generator().manual_seed(1))
    objective = Objective(0.0, 1.0, "reverse_kl")
    with pytest.raises(InvalidRequest, match=r"rules out id 0 .*use forward_kl or jsd"):
        distillation_loss(
            student_SV, OutputHead(torch.eye(V)), torch.ones(S).long(), targets, objective, S
        )


@pytest.mark.parametrize("kind", KINDS)
def test_its_answers_are_consistent(teacher: TargetsProvider, kind: str) -> None:
    answering = Answering(("dense", "hidden", "top_k", "sampled"), V, "float32", same_bytes=True)
    found = probe_teacher(teacher, ProbeRows(IDS, EVERYWHERE), KINDS[kind], 2.0, answering)
    assert "is consistent and agrees with" in found


@pytest.mark.parametrize("kind", ["dense", "hidden", "all but the masked", "into the masked"])
def test_the_probe_finds_masks_for_an_objective_that_they_make_infinite(
    teacher: TargetsProvider, kind: str
) -> None:
    answering = Answering(("dense", "hidden", "top_k", "sampled"), V, "float32", same_bytes=True)
    what = "every id beyond its top 56" if kind == "all but the masked" else "id 0"
    with pytest.raises(Incompatible, match=f"the teacher rules out {what} at row 0, position 0"):
        rows = ProbeRows(IDS, EVERYWHERE)
        probe_teacher(teacher, rows, KINDS[kind], 2.0, answering, may_mask=False)


@pytest.mark.parametrize(
    ("value", "ids"), [(math.inf, [3]), (math.nan, [3]), (-math.inf, list(range(V)))]
)
def test_logits_that_are_no_distribution_are_refused(
    tmp_path: Path, value: float, ids: list[int]
) -> None:
    folder = write_masked_model(tmp_path, value, ids)
    engine = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    assert "not finite" in str(engine.facts.why_not("hidden"))
    in_process = InProcessTeacher(load_causal_lm(folder, "float32"))
    with teacher_thread(engine) as address, connect_teacher(address, vocab_size=V) as remote:
        for asked in (remote, in_process):
            for kind in ("dense", "top_k", "sampled"):
                with pytest.raises(TeacherError, match="not finite"):
                    asked.score(IDS, EVERYWHERE, KINDS[kind], 1.0)


def test_a_masked_row_of_a_narrower_student_has_no_distribution(folder: Path) -> None:
    in_process = InProcessTeacher(load_causal_lm(folder, "float32"), vocab_size=1)
    with pytest.raises(TeacherError, match="all -inf"):
        in_process.score([np.zeros(3, np.uint32)], [np.ones(3, bool)], KINDS["dense"], 1.0)
