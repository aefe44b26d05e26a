"""Faults of a teacher server's model, injected into the process before it starts.

slow-load=SECONDS    loading the fixture takes this long
slow-fixture=SECONDS a forward of the fixture takes this long per token
slow-model=SECONDS   a forward of a model takes this much longer
memory=TOKENS        a forward of a model over more tokens runs out of memory
lost=TOKEN           a forward of a model with this token breaks the device: from then on its
                     results are garbage
unmeasured           skips measuring the model's speed at the start, which takes seconds
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from faults.replacing import put


def _slow_load(value: str) -> None:
    from teacher_server.engine.fixture import FixtureEngine

    original = FixtureEngine.__init__

    def slow(self: FixtureEngine, vocab_size: int) -> None:
        time.sleep(float(value))
        original(self, vocab_size)

    put(FixtureEngine, "__init__", slow)


def _slow_fixture(value: str) -> None:
    from teacher_server.engine.fixture import FixtureEngine
    from teacher_server.engine.seam import ComputedRows, SequenceAsk

    original = FixtureEngine.score

    def slow(self: FixtureEngine, asks: Sequence[SequenceAsk]) -> list[ComputedRows]:
        time.sleep(float(value) * sum(ask.num_tokens for ask in asks))
        return original(self, asks)

    put(FixtureEngine, "score", slow)


def _around_forwards(change: Callable[[Callable[[], Any], Any], Any]) -> None:
    """Replaces each forward by change(forward, ids_BS) once the server is open."""
    from lectern_models.body_and_head import BodyAndHead
    from teacher_server.rpc.server import TeacherServer

    hidden_states, open_server = BodyAndHead.hidden_states, TeacherServer.open
    is_open = False

    async def opened(*arguments: Any) -> Any:
        nonlocal is_open
        limits = await open_server(*arguments)
        is_open = True
        return limits

    def changed(self: BodyAndHead, ids_BS: Any) -> Any:
        def forward() -> Any:
            return hidden_states(self, ids_BS)

        return change(forward, ids_BS) if is_open else forward()

    put(BodyAndHead, "hidden_states", changed)
    put(TeacherServer, "open", opened)


def _slow_model(value: str) -> None:
    def slow(forward: Callable[[], Any], ids_BS: Any) -> Any:
        time.sleep(float(value))
        return forward()

    _around_forwards(slow)


def _memory(value: str) -> None:
    import torch

    def limited(forward: Callable[[], Any], ids_BS: Any) -> Any:
        if ids_BS.numel() > int(value):
            raise torch.OutOfMemoryError("no memory is left")
        return forward()

    _around_forwards(limited)


def _lost(value: str) -> None:
    import torch

    poisoned = False

    def breaking(forward: Callable[[], Any], ids_BS: Any) -> Any:
        nonlocal poisoned
        if not poisoned and bool((ids_BS == int(value)).any()):
            poisoned = True
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        hidden_BSD = forward()
        return torch.randn_like(hidden_BSD) if poisoned else hidden_BSD

    _around_forwards(breaking)


def _unmeasured(_value: str) -> None:
    from teacher_server.engine.transformers import TransformersEngine

    def measure(_self: TransformersEngine, _batch_tokens: int) -> None:
        return

    put(TransformersEngine, "measure", measure)


FAULTS: dict[str, Callable[[str], None]] = {
    "slow-load": _slow_load,
    "slow-fixture": _slow_fixture,
    "slow-model": _slow_model,
    "memory": _memory,
    "lost": _lost,
    "unmeasured": _unmeasured,
}
