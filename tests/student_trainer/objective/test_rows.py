"""The elementwise part of the objective, a few rows at a time and compiled."""

import pytest
import torch

from lectern_common.errors import Misconfigured
from student_trainer.objective import rows
from student_trainer.objective.loss import Objective, distillation_loss
from tests.student_trainer.objective.test_loss import largest_error, make_case
from tests.student_trainer.objective.test_sampled_loss import sampled_targets

# torch's own warning, while it compiles.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")

torch.set_num_threads(1)


def computed(representation, objective, vocab=300):
    """Returns the total and every gradient."""
    case = make_case(rows=40, vocab=vocab, transform="soft_cap")
    if representation == "sampled":
        targets = sampled_targets(case.teacher_logits_NV, 20, objective.temperature)
    else:
        targets = case.targets(representation, objective.temperature)
    loss = distillation_loss(case.hidden_ND, case.head, case.labels_N, targets, objective, 40)
    loss.total.backward()
    return loss.total.detach(), *case.gradients()


@pytest.mark.parametrize("representation", ["dense", "hidden", "top_k", "sampled"])
def test_results_do_not_depend_on_how_many_rows_are_processed_at_a_time(
    representation, monkeypatch
):
    objective = Objective(0.5, 2.0, chunk_tokens=16)
    whole = computed(representation, objective)
    for numel in (1, 900, 300 * 15):
        monkeypatch.setitem(rows._BLOCK_NUMEL, "cpu", numel)
        for ours, theirs in zip(computed(representation, objective), whole, strict=True):
            assert largest_error(ours, theirs.double()) < 1e-6


def test_a_block_of_rows_fits_a_cpu_cache_and_has_at_least_one():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert rows.block_rows(1 << 20, cpu) == 1
    assert rows.block_rows(2048, cpu) * 2048 * 4 <= 1 << 20
    assert rows.block_rows(151_936, cuda) > 200


@pytest.mark.long
def test_compiled_results_agree_with_eager_ones(tmp_path, monkeypatch):
    """Two chunks, computed by one graph."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain = computed("hidden", Objective(0.5, 2.0, chunk_tokens=20))
    compiled = computed("hidden", Objective(0.5, 2.0, chunk_tokens=20, compiled=True))
    for ours, theirs in zip(compiled, plain, strict=True):
        assert largest_error(ours, theirs.double()) < 1e-6
        assert not torch.equal(ours, torch.zeros_like(ours))


def test_a_failure_to_compile_is_refused_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    import torch._inductor.config as config

    # Not monkeypatch: undoing it would delete the setting for the rest of the process.
    no_compiler = config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))})
    why = r"device\.compile does not.* C\+\+ compiler"
    with no_compiler, pytest.raises(Misconfigured, match=why):
        computed("dense", Objective(0.0, 1.0, compiled=True), vocab=37)
