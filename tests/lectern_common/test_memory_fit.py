"""What does not fit is refused where that is certain, and told where it may be."""

from dataclasses import replace
from pathlib import Path

import psutil

from lectern_common.memory_estimate import MemoryEstimate
from lectern_common.memory_fit import FreeMemory, free_host_bytes, memory_fit
from lectern_common.words import GIB

NEEDS = MemoryEstimate(
    parameters=1 * GIB,
    gradients=1 * GIB,
    optimizer=2 * GIB,
    teacher_head=0,
    gathered=0,
    activations=3 * GIB,
    objective=1 * GIB,
    answers=1 * GIB,
)
GPU = FreeMemory("cuda:0", 9 * GIB, 2 * GIB)


def cpu(gib: float) -> FreeMemory:
    return FreeMemory("cpu", int(gib * GIB), int(gib * GIB))


def test_what_fits_needs_no_words() -> None:
    fit = memory_fit(NEEDS, cpu(9))
    assert (fit.needed_bytes, fit.problem, fit.warning) == (9 * GIB, None, None)
    assert memory_fit(NEEDS, GPU).needed_bytes == 8 * GIB  # answers are the host's


def test_the_certain_part_is_refused_with_its_parts_and_what_to_set() -> None:
    fit = memory_fit(NEEDS, cpu(3.99))
    assert fit.problem == (
        "the student takes 4.00 GiB of memory to train (parameters 1.00 GiB, gradients 1.00 GiB, "
        "optimizer 2.00 GiB), and 3.99 GiB are free on cpu; take a smaller student, set "
        "student.lora"
    )
    assert memory_fit(NEEDS, cpu(4)).problem is None
    gpu = memory_fit(replace(NEEDS, teacher_head=6 * GIB), GPU).problem
    assert gpu is not None
    assert "teacher head 6.00 GiB" in gpu
    assert "raise device.count, or take another teacher.representation" in gpu


def test_activations_alone_are_a_warning() -> None:
    fit = memory_fit(NEEDS, cpu(8.9))
    assert fit.problem is None
    assert fit.warning == (
        "the run may need 9.00 GiB of memory (3.00 GiB of it activations), and 8.90 GiB are free "
        "on cpu; lower batch.micro_batch_sequences, or set device.activation_checkpointing"
    )


def test_answers_are_in_the_hosts_memory() -> None:
    fit = memory_fit(replace(NEEDS, answers=3 * GIB), GPU)
    assert fit.warning is not None and "lower teacher.prefetch_steps" in fit.warning
    assert memory_fit(replace(NEEDS, answers=2 * GIB), GPU).warning is None


def test_processes_share_the_hosts_memory_and_have_a_gpu_each() -> None:
    assert memory_fit(NEEDS, cpu(12), processes=3).problem is None
    refused = memory_fit(NEEDS, cpu(11.9), processes=3).problem
    assert refused is not None and "takes 12.00 GiB" in refused
    assert memory_fit(NEEDS, GPU, processes=3).problem is None
    assert memory_fit(NEEDS, GPU, processes=3).warning is not None  # 3 GiB of answers on one host


def test_a_containers_limit_holds_and_cached_files_do_not_count(tmp_path: Path) -> None:
    assert abs(free_host_bytes(tmp_path) - psutil.virtual_memory().available) < GIB
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 300000\n")
    assert free_host_bytes(tmp_path) == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_host_bytes(tmp_path) > 1_000_000
