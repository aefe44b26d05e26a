"""The server over a real socket: model facts, states, refusals, cancellation, tokens, health."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from lectern_common.errors import Misconfigured, TeacherError
from lectern_common.listening import EVERY_IPV4, bound_sockets
from lectern_common.teacher.channel import TeacherChannel
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from lectern_common.wire.formats import Representation
from protos import teacher_pb2 as pb
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.fixture import FixtureEngine
from teacher_server.engine.seam import DeviceLost, SequenceAsk
from teacher_server.engine.transformers import EngineSettings
from teacher_server.rpc.limits import Limits
from teacher_server.rpc.server import SERVICE_NAME, TeacherServer
from teacher_server.scheduling.sharing import Sharing
from tests.support.asking import connect, gathered, refused, request, score, stub
from tests.support.engines import BreakingEngine, GatedEngine
from tests.support.models import write_tiny_model
from tests.support.names import has_ipv6, listens, resolve
from tests.support.servers import TeacherThread, teacher_thread, wait_for

TOKEN = "0123456789abcdef" * 2
VERSION: dict[str, Any] = {"protocol_version": 1}


def health(channel: grpc.Channel, service: str = "") -> str:
    reply = health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service=service), timeout=30
    )
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


@pytest.fixture
def gated() -> Iterator[tuple[GatedEngine, str]]:
    """A server whose forwards wait for permits, and takes three requests at once."""
    engine = GatedEngine()
    with teacher_thread(engine, Limits(max_queued_requests=3)) as address:
        yield engine, address
        engine.allow(1000)


# ---- what the model is -------------------------------------------------------------------------


def test_get_model_says_what_is_served(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, vocab_size=300, tokenizer=True, max_positions=64)
    engine = transformers_engine.load(str(folder), EngineSettings(dtype="bfloat16", device="cpu"))
    with teacher_thread(engine) as address, TeacherChannel(address) as channel:
        model = channel.get_model()
        tokens = channel.get_tokenizer_map()
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert tokens == vocabulary
    assert model.tokenizer_sha256 == tokenizer_sha256(vocabulary)
    assert (model.model_id, model.revision) == (folder.name, "")
    assert (model.logit_width, model.num_tokens) == (300, len(vocabulary))
    assert (model.max_positions, model.limits.max_sequence_tokens) == (64, 64)
    assert (model.hidden_size, model.hidden_dtype) == (32, pb.DTYPE_BFLOAT16)
    assert (model.dtype, model.quantization, model.device) == ("bfloat16", "none", "cpu")
    assert (model.engine, model.mode) == ("transformers", "independent")
    from transformers import AutoModelForCausalLM

    own = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters == own.num_parameters()
    offers: dict[int, tuple[bool, str]] = {
        offer.kind: (offer.offered, offer.reason) for offer in model.representations
    }
    assert [offers[kind][0] for kind in (1, 2, 3, 4)] == [True] * 4
    assert len(model.weights_sha256) == len(model.fingerprint) == 64


def test_the_fingerprint_changes_with_everything_that_changes_answers(tmp_path: Path) -> None:
    def fingerprint(name: str, dtype: str = "auto", **changes: Any) -> str:
        folder = write_tiny_model(tmp_path / name, vocab_size=300, **changes)
        return transformers_engine.load(
            str(folder), EngineSettings(dtype=dtype, device="cpu")
        ).facts.fingerprint

    first = fingerprint("a")
    assert fingerprint("copy") == first  # the folder's name is not in it
    others = [
        fingerprint("seed", seed=1),
        fingerprint("dtype", dtype="bfloat16"),
        fingerprint("tokenizer", tokenizer=True),
        fingerprint("config", rms_norm_eps=1e-5),
    ]
    assert len({first, *others}) == 5


def test_the_weights_hash_equals_the_students_in_any_dtype(tmp_path: Path) -> None:
    wide = write_tiny_model(tmp_path / "wide")
    narrow = write_tiny_model(tmp_path / "narrow", dtype="bfloat16")
    facts = [
        transformers_engine.load(str(f), EngineSettings(device="cpu")).facts for f in (wide, narrow)
    ]
    assert facts[0].weights_sha256 == facts[1].weights_sha256
    assert facts[0].fingerprint != facts[1].fingerprint


def test_stats_count_work_per_run() -> None:
    with teacher_thread(FixtureEngine(97)) as address, TeacherChannel(address) as channel:
        score(address, request([[1, 2], [3]], run_id="a"))
        score(address, request([[1]], "top_k", top_k=2, run_id="b"))
        assert refused(address, request([[99]]))[0] == "INVALID_ARGUMENT"
        stats = channel.get_stats()
    assert (stats.scored_tokens, stats.scored_sequences) == (4, 3)
    assert stats.sent_bytes == 3 * 4 * 97 + 24
    assert (stats.refused_requests, stats.failed_requests) == (1, 0)
    assert stats.compute_seconds > 0 and stats.tokens_per_second > 0
    assert (stats.queued_requests, stats.running_requests, stats.queued_tokens) == (0, 0, 0)
    runs = {run.run_id: run for run in stats.runs}
    assert (runs["a"].requests, runs["a"].tokens, runs["a"].sent_bytes) == (1, 3, 3 * 4 * 97)
    assert (runs["b"].requests, runs["b"].tokens, runs["b"].sent_bytes) == (1, 1, 24)
    assert not stats.HasField("device_utilization")


def test_reflection_names_the_service() -> None:
    with teacher_thread(FixtureEngine(97)) as address, connect(address) as channel:
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {SERVICE_NAME, "grpc.health.v1.Health"} <= set(services)
    assert SERVICE_NAME == "lectern.v1.Teacher"


# ---- states ------------------------------------------------------------------------------------


def test_loading_is_live_but_not_serving_then_serving() -> None:
    server = TeacherThread()
    try:
        with connect(server.address) as channel:
            assert health(channel) == health(channel, SERVICE_NAME) == "NOT_SERVING"
            code, detail, trailing = refused(server.address, request([[1]]))
            assert (code, detail) == ("UNAVAILABLE", "the model is still loading")
            assert trailing["lectern-reason"] == "teacher_unavailable"
            server.open(FixtureEngine(97))
            assert health(channel) == health(channel, SERVICE_NAME) == "SERVING"
            assert len(score(server.address, request([[1]])).floats) == 1
    finally:
        server.close()


def test_draining_finishes_calls_in_flight_and_takes_no_new_ones() -> None:
    engine, server = GatedEngine(), TeacherThread()
    try:
        server.open(engine)
        with connect(server.address) as channel:
            watched: list[int] = []
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            watcher = threading.Thread(target=lambda: _collect(watching, watched))
            watcher.start()
            stream = stub(channel).LogitsForBatch(request([[1], [2]]), timeout=60)
            assert next(stream).WhichOneof("part") == "header"
            wait_for(lambda: engine.begun == [1])
            finished: list[bool] = []
            draining = threading.Thread(target=lambda: finished.append(server.drain()))
            draining.start()
            not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
            wait_for(lambda: watched and watched[-1] == not_serving)
            assert health(channel) == "NOT_SERVING"
            with pytest.raises(grpc.RpcError) as caught:
                list(stub(channel).LogitsForBatch(request([[3]]), timeout=30))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "shutting down" in (caught.value.details() or "")
            assert not finished
            engine.allow(2)
            assert [part.WhichOneof("part") for part in stream] == ["piece", "trailer"]
            draining.join(60)
            assert finished == [True]
            watcher.join(60)
        assert engine.begun == [1, 2]
    finally:
        engine.allow(100)
        server.close()


def _collect(watching, seen: list[int]) -> None:
    try:
        for reply in watching:
            seen.append(reply.status)
    except grpc.RpcError:
        pass


def test_health_answers_while_the_model_computes(gated: tuple[GatedEngine, str]) -> None:
    engine, address = gated
    with connect(address) as channel:
        stream = stub(channel).LogitsForBatch(request([[1]]), timeout=60)
        wait_for(lambda: engine.begun == [1])
        assert health(channel) == "SERVING"
        with TeacherChannel(address) as other:
            assert other.get_model().engine == "fixture"
            assert other.get_stats().running_requests == 1
        engine.allow(1)
        gathered(stream)


# ---- the reply stream --------------------------------------------------------------------------


def test_the_header_comes_before_any_forward_and_pieces_as_sequences_finish() -> None:
    engine = GatedEngine(vocab_size=4096)
    with teacher_thread(engine) as address, connect(address) as channel:
        batch = [[i] * 100 for i in range(1, 4)]  # 1.6 MB of dense rows each
        stream = stub(channel).LogitsForBatch(request(batch, vocab_size=4096), timeout=60)
        header = next(stream).header
        assert header.total_bytes == 300 * 4 * 4096 and header.num_rows == 300
        assert header.fingerprint == engine.facts.fingerprint
        engine.allow(1)
        piece = next(stream).piece
        assert (piece.first_row, piece.num_rows) == (0, 64)  # a mebibyte, before the second
        assert 3 not in engine.begun
        engine.allow(2)
        assert [part.WhichOneof("part") for part in stream] == ["piece"] * 4 + ["trailer"]


def test_small_rows_are_gathered_into_one_piece() -> None:
    with teacher_thread(FixtureEngine(97)) as address:
        answer = score(address, request([[i] for i in range(90)]))
    assert len(answer.pieces) == 1
    assert answer.floats.argmax(-1).tolist() == list(range(90))


def test_sequences_without_an_asked_position_cost_nothing(gated: tuple[GatedEngine, str]) -> None:
    engine, address = gated
    engine.allow(1)
    answer = score(address, request([[1, 2], [3, 4]], mask=[[0, 0], [1, 0]]))
    assert answer.floats.argmax(-1).tolist() == [3]
    assert engine.begun == [3]


# ---- refusals ----------------------------------------------------------------------------------


def test_an_invalid_field_is_named_in_the_trailing_metadata(gated: tuple[GatedEngine, str]) -> None:
    engine, address = gated
    code, detail, trailing = refused(address, request([[1]], temperature=float("nan")))
    assert code == "INVALID_ARGUMENT" and "finite" in detail
    assert trailing["lectern-reason"] == "invalid_request"
    assert trailing["lectern-field"] == "temperature"
    assert engine.begun == []


def test_a_different_fingerprint_is_refused_before_any_work(gated: tuple[GatedEngine, str]) -> None:
    engine, address = gated
    code, detail, trailing = refused(address, request([[1]], fingerprint="f" * 64))
    assert (code, trailing["lectern-reason"]) == ("FAILED_PRECONDITION", "wrong_model")
    assert "fixture-97" in detail
    with connect(address) as channel, pytest.raises(grpc.RpcError) as caught:
        asked = pb.GetOutputHeadRequest(**VERSION, vocab_size=5, expected_fingerprint="f" * 64)
        list(stub(channel).GetOutputHead(asked, timeout=30))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert engine.begun == []


def test_a_model_without_hidden_states_refuses_them_with_the_reason(
    gated: tuple[GatedEngine, str],
) -> None:
    engine, address = gated
    for kind in ("hidden", "sampled"):
        code, detail, trailing = refused(address, request([[1]], kind))
        assert code == "FAILED_PRECONDITION"
        assert trailing["lectern-reason"] == "representation_not_offered"
        assert (engine.facts.not_offered[kind] or "") in detail
    with connect(address) as channel, pytest.raises(grpc.RpcError) as caught:
        asked = pb.GetOutputHeadRequest(**VERSION, vocab_size=5)
        list(stub(channel).GetOutputHead(asked, timeout=30))
    assert "no hidden states" in (caught.value.details() or "")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("GetModel", pb.GetModelRequest(protocol_version=2)),
        ("GetStats", pb.GetStatsRequest()),
        ("GetTokenizerMap", pb.GetTokenizerMapRequest(protocol_version=7)),
        ("GetOutputHead", pb.GetOutputHeadRequest(vocab_size=5)),
        ("LogitsForBatch", pb.LogitsForBatchRequest()),
    ],
)
def test_every_call_refuses_another_protocol_version(
    gated: tuple[GatedEngine, str], call: str, message: object
) -> None:
    with connect(gated[1]) as channel, pytest.raises(grpc.RpcError) as caught:
        reply = getattr(stub(channel), call)(message, timeout=30)
        list(reply)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "protocol_version" in (caught.value.details() or "")


def test_a_reply_over_the_limit_is_refused_before_compute() -> None:
    engine = GatedEngine()
    with teacher_thread(engine, Limits(max_reply_bytes=10 * 4 * 97)) as address:
        code, detail, trailing = refused(address, request([[1] * 4, [2] * 4, [3] * 4]))
    assert (code, trailing["lectern-field"]) == ("INVALID_ARGUMENT", "sequence_lengths")
    assert "at most 10 positions fit, the first 2 of these 3 sequences" in detail
    assert engine.begun == []


def test_a_full_queue_pushes_back(gated: tuple[GatedEngine, str]) -> None:
    engine, address = gated
    with connect(address) as channel:
        streams = [
            stub(channel).LogitsForBatch(request([[token]], run_id=f"run-{token}"), timeout=60)
            for token in (1, 2, 3)
        ]
        assert all(next(stream).header.num_rows == 1 for stream in streams)
        code, detail, trailing = refused(address, request([[9]]))
        assert code == "RESOURCE_EXHAUSTED" and "3 requests" in detail
        assert trailing["lectern-reason"] == "overloaded"
        assert int(trailing["grpc-retry-pushback-ms"]) >= 100
        engine.allow(3)
        for stream in streams:
            list(stream)
        engine.allow(1)
        score(address, request([[4]]))
    assert sorted(engine.begun) == [1, 2, 3, 4]


def test_64_clients_against_a_queue_of_16_all_finish_by_retrying() -> None:
    import time
    from concurrent.futures import ThreadPoolExecutor

    def insist(token: int) -> int:
        while True:
            try:
                return int(score(address, request([[token]] * 3)).floats[2].argmax())
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                trailing = {entry.key: entry.value for entry in error.trailing_metadata()}
                time.sleep(int(trailing["grpc-retry-pushback-ms"]) / 10_000)

    limits = Limits(max_queued_requests=16)
    with teacher_thread(FixtureEngine(97), limits) as address, ThreadPoolExecutor(64) as clients:
        assert list(clients.map(insist, range(64))) == list(range(64))


# ---- cancellation, deadlines, faults -----------------------------------------------------------


def test_a_cancelled_call_leaves_the_queue_and_gets_no_forward(
    gated: tuple[GatedEngine, str],
) -> None:
    engine, address = gated
    with connect(address) as channel, TeacherChannel(address) as watching:
        first = stub(channel).LogitsForBatch(request([[1]]), timeout=60)
        wait_for(lambda: engine.begun == [1])
        second = stub(channel).LogitsForBatch(request([[2]] * 5), timeout=60)
        next(second)
        assert watching.get_stats().queued_requests == 1
        second.cancel()
        wait_for(lambda: watching.get_stats().queued_requests == 0)
        engine.allow(2)
        gathered(first)
        score(address, request([[3]]))
    assert engine.begun == [1, 3]


def test_a_call_whose_deadline_passes_in_the_queue_gets_no_forward(
    gated: tuple[GatedEngine, str],
) -> None:
    engine, address = gated
    with connect(address) as channel, TeacherChannel(address) as watching:
        first = stub(channel).LogitsForBatch(request([[1]]), timeout=60)
        wait_for(lambda: engine.begun == [1])
        with pytest.raises(grpc.RpcError) as caught:
            list(stub(channel).LogitsForBatch(request([[2]]), timeout=0.2))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: watching.get_stats().queued_requests == 0)
        engine.allow(2)
        gathered(first)
        score(address, request([[3]]))
    assert engine.begun == [1, 3]


def test_clients_that_vanish_mid_reply_leave_nothing_behind() -> None:
    engine = FixtureEngine(4096)
    with teacher_thread(engine, Limits(max_queued_requests=2)) as address:
        for _ in range(20):
            with connect(address) as channel:
                batch = [[1] * 200] * 20  # 65 MB, more than the transport holds
                stream = stub(channel).LogitsForBatch(request(batch, vocab_size=4096), timeout=60)
                next(stream)
                next(stream)
        with TeacherChannel(address) as channel:
            wait_for(lambda: channel.get_stats().running_requests == 0)
            wait_for(lambda: channel.get_stats().queued_requests == 0)
        assert len(score(address, request([[1]], vocab_size=4096)).floats) == 1


def test_an_internal_error_is_one_sentence_to_its_client_and_affects_no_other() -> None:
    engine = BreakingEngine(RuntimeError("a secret path /root/x"))
    with teacher_thread(engine) as address, TeacherChannel(address) as channel:
        code, detail, _ = refused(address, request([[1], [13]]))
        assert code == "INTERNAL" and "log" in detail and "secret" not in detail
        assert len(score(address, request([[1]])).floats) == 1
        assert channel.get_stats().failed_requests == 1


def test_output_that_is_not_finite_is_data_loss_and_never_sent() -> None:
    engine = BreakingEngine(TeacherError("the model's output is not finite"))
    with teacher_thread(engine) as address:
        code, detail, trailing = refused(address, request([[13]]))
        assert (code, trailing["lectern-reason"]) == ("DATA_LOSS", "teacher_error")
        assert "not finite" in detail


def test_a_model_with_a_poisoned_weight_sends_no_rows(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_tiny_model(tmp_path, tied=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][7, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    engine = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    with teacher_thread(engine) as address:
        for kind, k in (("dense", 0), ("top_k", 3), ("hidden", 0)):
            if engine.facts.not_offered[kind] is None:
                assert refused(address, request([[1, 7]], kind, top_k=k))[0] == "DATA_LOSS"
                assert score(address, request([[1, 2]], kind, top_k=k)).header.num_rows == 2


# ---- who may call ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer wrong" + "0" * 20),),
        (("authorization", TOKEN),),
        (("authorization", f"bearer {TOKEN}"),),
        (("authorization", f"Bearer {TOKEN} "),),
        (("authorization", f"Bearer {TOKEN[:-1]}"),),
        (("x-authorization", f"Bearer {TOKEN}"),),
        (("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")),
    ],
)
def test_a_call_without_the_token_is_refused(metadata: tuple) -> None:
    engine = GatedEngine()
    with teacher_thread(engine, token=TOKEN) as address, connect(address) as channel:
        calls = stub(channel)
        streams = (
            lambda: list(calls.LogitsForBatch(request([[1]]), timeout=30, metadata=metadata)),
            lambda: calls.GetModel(pb.GetModelRequest(**VERSION), timeout=30, metadata=metadata),
            lambda: calls.GetStats(pb.GetStatsRequest(**VERSION), timeout=30, metadata=metadata),
            lambda: list(
                calls.GetOutputHead(
                    pb.GetOutputHeadRequest(**VERSION, vocab_size=3), timeout=30, metadata=metadata
                )
            ),
            lambda: list(
                calls.GetTokenizerMap(
                    pb.GetTokenizerMapRequest(**VERSION), timeout=30, metadata=metadata
                )
            ),
        )
        for call in streams:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert TOKEN not in (caught.value.details() or "")
            trailing: dict[str, Any] = {
                entry.key: entry.value for entry in caught.value.trailing_metadata()
            }
            assert trailing["lectern-reason"] == "unauthenticated"
        with pytest.raises(grpc.RpcError) as caught:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert health(channel) == "SERVING"  # probes carry none
    assert engine.begun == []


def test_the_token_opens_every_call() -> None:
    with (
        teacher_thread(FixtureEngine(97), token=TOKEN) as address,
        TeacherChannel(address, TOKEN) as channel,
    ):
        assert channel.get_model().engine == "fixture"
        assert channel.get_tokenizer_map() == {}
        stream = channel.call(channel.stub.LogitsForBatch, request([[5]]), 30)
        assert gathered(stream).floats.argmax() == 5


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0", "192.0.2.7:50051", "example.org:50051"])
def test_beyond_loopback_a_token_is_required(bind: str) -> None:
    import asyncio

    async def make(token: str | None) -> None:
        TeacherServer(bind, token)

    with pytest.raises(Misconfigured, match="set --token-file"):
        asyncio.run(make(None))
    asyncio.run(make(TOKEN))


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("host", "ipv4", "ipv6"),
    [
        ("127.0.0.1", True, False),
        (EVERY_IPV4, True, False),
        ("[::1]", False, True),
        ("[::]", True, True),
        ("two.test", True, True),
    ],
)
def test_the_server_listens_on_what_its_address_names(
    host: str, ipv4: bool, ipv6: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, "two.test", "127.0.0.1", "::1")

    async def serve() -> tuple[bool, bool]:
        server = TeacherServer(f"{host}:0", TOKEN)
        await server.start()
        port = int(server.address.rpartition(":")[2])
        assert server.address == f"{host}:{port}"
        found = listens("127.0.0.1", port), listens("::1", port)
        await server.drain(0)
        return found

    assert asyncio.run(serve()) == (ipv4, ipv6)


def test_a_name_is_served_without_the_addresses_that_the_machine_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve(monkeypatch, "two.test", "192.0.2.7", "127.0.0.1")

    async def serve() -> bool:
        server = TeacherServer("two.test:0", TOKEN)
        await server.start()
        found = listens("127.0.0.1", int(server.address.rpartition(":")[2]))
        await server.drain(0)
        return found

    assert asyncio.run(serve())


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
def test_a_name_of_which_one_address_is_taken_is_refused(
    taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, "two.test", "127.0.0.1", "::1")

    async def serve(port: int) -> None:
        await TeacherServer(f"two.test:{port}", TOKEN).start()

    [other] = bound_sockets(taken, 0)
    with other, pytest.raises(Misconfigured, match=r"cannot listen on .*: the port is taken"):
        other.listen()
        asyncio.run(serve(other.getsockname()[1]))


@pytest.mark.parametrize(
    ("bind", "why"),
    [
        *((bind, "is not host:port") for bind in ("127.0.0.1", ":50051", "localhost:port", "")),
        ("127.0.0.1:70000", "is greater than 65535"),
    ],
)
def test_an_invalid_address_is_refused(bind: str, why: str) -> None:
    import asyncio

    async def make() -> None:
        TeacherServer(bind, None)

    with pytest.raises(Misconfigured, match=why):
        asyncio.run(make())


def test_answers_do_not_depend_on_who_else_asks(tmp_path: Path) -> None:
    """Many threads, one model: each gets the bytes that it gets alone."""
    from concurrent.futures import ThreadPoolExecutor

    engine = transformers_engine.load(str(write_tiny_model(tmp_path)), EngineSettings(device="cpu"))
    generator = np.random.default_rng(0)
    batches = [[generator.integers(97, size=n).tolist() for n in (3, 20)] for _ in range(12)]
    with teacher_thread(engine, sharing=Sharing(cache_bytes=0)) as address:
        alone = [score(address, request(batch, "hidden")).payload for batch in batches]
        with ThreadPoolExecutor(12) as clients:
            together = list(
                clients.map(lambda batch: score(address, request(batch, "hidden")).payload, batches)
            )
    digests = [hashlib.sha256(payload).hexdigest() for payload in alone]
    assert [hashlib.sha256(payload).hexdigest() for payload in together] == digests


def test_a_server_whose_queue_broke_still_drains() -> None:
    async def broken() -> None:
        raise DeviceLost("CUDA error")

    async def scenario() -> None:
        server = TeacherServer("127.0.0.1:0", None)
        await server.start()
        await server.open(FixtureEngine(7), Limits())
        assert server.batching is not None
        server.batching.cancel()
        server.batching = asyncio.create_task(broken())
        await asyncio.wait([server.batching])
        assert await server.drain(0)

    asyncio.run(scenario())


def test_a_failed_device_is_distinguished_from_a_failed_request(tmp_path: Path) -> None:
    engine = transformers_engine.load(
        str(write_tiny_model(tmp_path)), EngineSettings(dtype="float32", device="cpu")
    )

    def fail(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    engine._model.register_forward_hook(fail)
    for module in engine._model.children():
        module.register_forward_hook(fail)
    ids = np.array([1, 2], np.uint32)
    ask = SequenceAsk(ids, np.ones(2, bool), 7, Representation("dense"), 1.0)
    with pytest.raises(DeviceLost):
        engine.score([ask])
