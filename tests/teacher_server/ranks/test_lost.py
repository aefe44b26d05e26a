"""Ranks that lack memory, fail or die: the others learn of it, and none waits for ever."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lectern_common.errors import CorruptData, TeacherOutOfMemory
from lectern_common.ranks import RANK_LOST
from lectern_models.body_and_head import BodyAndHead
from teacher_server.engine.seam import DeviceLost
from teacher_server.ranks.follower import Rank, follow
from teacher_server.ranks.followers import LOAD, RUN, TRY, Answer, Followers
from tests.support.models import write_tiny_model
from tests.support.servers import wait_for
from tests.support.tensor_parallel import two_ranks
from tests.teacher_server.engine.test_architectures import tokens
from tests.teacher_server.ranks.test_lead import rows_alone

# A follower that does nothing but answer; its words are JSON without braces.
ANSWERS = """
import json, struct, sys
while header := sys.stdin.buffer.read(17):
    kind, rows, columns = struct.unpack("<cQQ", header)
    sys.stdin.buffer.read(rows if kind == b"L" else 8 * rows * columns)
    print(json.dumps({"outcome": "done", "text": ""}), flush=True)
"""
FAILS = """
import sys
sys.stdin.buffer.read(17)
print('{"outcome": "failed", "text": "the weights are damaged"}', flush=True)
sys.exit(70)
"""
SILENT = "import sys; sys.stdin.buffer.read()"


@pytest.mark.parametrize("short_of_memory", [0, 1])
def test_if_one_rank_lacks_memory_only_that_request_is_refused(
    tmp_path: Path, short_of_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_model(tmp_path, "qwen2")
    with two_ranks(str(30 if short_of_memory == 1 else 1000)) as pair:
        engine = pair.engine(folder)
        expected = rows_alone(engine, tokens()[:30])
        if short_of_memory == 0:
            _limit_this_process(monkeypatch, 30)
        for _ in range(2):
            with pytest.raises(TeacherOutOfMemory, match="does not fit into the teacher's memory"):
                rows_alone(engine, tokens())
            assert rows_alone(engine, tokens()[:30]) == expected
        assert pair.followers.lost is None


def _limit_this_process(monkeypatch: pytest.MonkeyPatch, most: int) -> None:

    hidden_states = BodyAndHead.hidden_states

    def limited(self: BodyAndHead, ids_BS: torch.Tensor) -> torch.Tensor:
        if ids_BS.numel() > most:
            raise torch.OutOfMemoryError("no memory is left")
        return hidden_states(self, ids_BS)

    monkeypatch.setattr(BodyAndHead, "hidden_states", limited)


def test_a_killed_rank_is_a_lost_device(tmp_path: Path) -> None:
    with two_ranks() as pair:
        engine = pair.engine(write_tiny_model(tmp_path, "qwen2"))
        rows_alone(engine, tokens())
        (pid,) = pair.followers.pids
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(DeviceLost, match="rank 1 of 2 was killed by SIGKILL"):
            rows_alone(engine, tokens())
        with pytest.raises(DeviceLost, match="rank 1 of 2 was killed by SIGKILL"):
            rows_alone(engine, tokens())


class ScriptedRank(Rank):
    """Raises what it is given, in turn; None means that the work succeeds."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self._outcomes = list(outcomes)

    def load(self, settings: Any) -> None:
        self.forward(settings)

    def rehearse(self, ids_BS: Any) -> None:
        self.forward(ids_BS)

    def forward(self, ids_BS: Any) -> None:
        outcome = self._outcomes.pop(0)
        if outcome is not None:
            raise outcome


def followed(told: list[bytes], *outcomes: Exception | None) -> tuple[int, list[Answer]]:
    said: list[Answer] = []
    words = iter([(kind, None) for kind in told])
    return follow(ScriptedRank(*outcomes), lambda: next(words), said.append), said


def test_a_follower_goes_on_after_a_trial_and_ends_after_anything_else_that_fails() -> None:
    code, said = followed(
        [LOAD, TRY, TRY, TRY, RUN, RUN],
        None,
        torch.OutOfMemoryError("full"),
        IndexError("too long"),
        None,
        None,
        RuntimeError("broken"),
    )
    assert code == RANK_LOST
    assert [one.outcome for one in said] == ["done", "memory", "error", "done", "done", "failed"]
    assert said[2].text == "IndexError: too long" and said[-1].text == "RuntimeError: broken"


def test_too_little_memory_in_the_middle_of_an_exchange_ends_a_follower() -> None:
    assert followed([RUN], torch.OutOfMemoryError("full"))[1][0].outcome == "failed"
    assert followed([TRY], torch.AcceleratorError("gone"))[1][0].outcome == "failed"


def test_what_a_follower_cannot_load_is_said_in_the_errors_own_words() -> None:
    code, said = followed([LOAD], CorruptData("m lacks 3 tensors"))
    assert code == RANK_LOST and said == [Answer("failed", "m lacks 3 tensors")]


def scripted(script: str, lost: list[str]) -> Followers:
    followers = Followers(3, lambda: lost.append("lost"), (sys.executable, "-c", script))
    followers.start()
    return followers


def test_every_follower_is_told_and_answers_once() -> None:
    lost: list[str] = []
    followers = scripted(ANSWERS, lost)
    try:
        followers.load({"folder": "m"})
        assert followers.answers(60) == {1: Answer("done"), 2: Answer("done")}
        followers.forward(RUN, torch.arange(40_000).view(4, -1).numpy())  # more than a pipe holds
        assert followers.answers(60) == {1: Answer("done"), 2: Answer("done")}
    finally:
        followers.end()
    assert lost == [] and followers.lost is None  # their end was no loss


def test_a_failed_follower_is_named_with_what_it_said() -> None:
    lost: list[str] = []
    followers = scripted(FAILS, lost)
    try:
        followers.load({})
        with pytest.raises(DeviceLost, match=r"rank [12] of 3 failed: the weights are damaged"):
            while True:
                followers.answers(60)
        assert lost == ["lost"]
    finally:
        followers.end()


def test_a_follower_that_does_not_answer_is_lost() -> None:
    lost: list[str] = []
    followers = scripted(SILENT, lost)
    try:
        followers.load({})
        with pytest.raises(DeviceLost, match="rank 1 of 3 does not answer"):
            followers.answers(0.01)
        assert lost == ["lost"]
    finally:
        followers.end()


def test_no_process_is_left_when_they_are_ended() -> None:
    followers = scripted(SILENT, [])
    pids = followers.pids
    followers.end()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    followers.end()


def test_a_followers_end_is_noticed_while_nothing_is_asked() -> None:
    lost: list[str] = []
    followers = scripted(SILENT, lost)
    try:
        os.kill(followers.pids[1], signal.SIGKILL)
        wait_for(lambda: lost)
        assert followers.lost == "rank 2 of 3 was killed by SIGKILL"
        with pytest.raises(DeviceLost, match="rank 2 of 3 was killed by SIGKILL"):
            followers.load({})
    finally:
        followers.end()
