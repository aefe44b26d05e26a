"""Which device a rank computes on."""

import pytest
import torch

from lectern_common.errors import Misconfigured
from student_trainer.ranks.device import choose_device


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_every_rank_reports_that_there_are_fewer_gpus_than_ranks(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(Misconfigured, match=r"3 ranks .* sees 2; lower device\.count"):
        choose_device("auto")
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_device("cuda") == torch.device("cuda", rank)
