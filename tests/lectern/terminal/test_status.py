"""`lectern teacher status`, mostly of a fake teacher."""

import pytest

from protos import teacher_pb2 as pb
from tests.support.certificates import Authority
from tests.support.fakes import NOBODY, FakeTeacher, serving
from tests.support.servers import teacher_process

BAR = "\N{BOX DRAWINGS LIGHT VERTICAL}"
TOKEN = "0123456789abcdef" * 2


@pytest.fixture
def teacher() -> FakeTeacher:
    teacher = FakeTeacher(
        mode="throughput", quantization="int8", measured_tokens_per_second=12_345.6
    )
    teacher.stats.MergeFrom(
        pb.Stats(
            queued_tokens=4_800,
            scored_sequences=900,
            compute_seconds=10.0,
            forwards=77,
            padding_tokens=1_247,
            sent_bytes=3_000_000_000,
            device_utilization=0.93,
            refused_requests=12,
            uptime_seconds=93_811,
            cache=pb.CacheStats(
                hits=3,
                misses=1,
                used_bytes=1_200_000_000,
                capacity_bytes=4_000_000_000,
                disk_used_bytes=5_000_000,
                disk_capacity_bytes=90_000_000_000,
            ),
            runs=[
                pb.RunStats(
                    run_id="coder-abcdef",
                    requests=2,
                    tokens=123_456,
                    sent_bytes=999_600,
                    compute_seconds=7.5,
                    queue_seconds=0.5,
                    cache_hits=1,
                    cache_misses=3,
                    weight=2.0,
                ),
                pb.RunStats(run_id="new-abcdef"),
            ],
        )
    )
    return teacher


def test_a_teacher_is_shown_with_its_runs(lectern, teacher, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with serving(teacher) as address:
        shown = lectern("teacher", "status", address)
    assert shown.code == 0, shown
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines[:10] == [
        f"fake-teacher at {address}",
        "device cpu (fake), 93 % in use",
        "dtype float32, int8",
        "mode throughput",
        "speed 9,876 tokens/s in the last minute; 12,346 measured at startup",
        "requests 2 of at most 16 queued, with 4,800 tokens; 1 in progress",
        "scored 123,456 tokens of 900 sequences in 77 forwards, 1 % padding",
        "cache 75 % hits of 4 sequences; 1.2 GB of 4 GB used, on disk 5 MB of 90 GB",
        "answers 3 GB sent; 12 requests refused, 0 failed",
        "up for 26:03:31",
    ]
    rows = [line.strip(f"{BAR} ").split(BAR) for line in shown.out.splitlines() if "abcdef" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["coder-abcdef", "75 %", "123,456", "1 MB", "25 %", "0.25 s", "2"],
        ["new-abcdef", "0 %", "0", "0 bytes", "-", "-", "-"],
    ]


def test_programs_get_json(lectern, teacher):
    with serving(teacher) as address:
        figures = lectern("teacher", "status", address, "--json").json
    assert (figures["address"], figures["mode"]) == (address, "throughput")
    assert figures["cache"]["hit_share"] == 0.75
    assert [account["compute_share"] for account in figures["accounts"]] == [0.75, 0.0]


def test_a_teacher_that_reports_little_is_shown_too(lectern, teacher):
    teacher.stats.CopyFrom(pb.Stats(scored_tokens=5))
    teacher.model.ClearField("measured_tokens_per_second")
    teacher.model.ClearField("quantization")
    with serving(teacher) as address:
        shown = lectern("teacher", "status", address)
    assert shown.code == 0, shown
    assert "cache      none" in shown.out
    assert "run" not in shown.out


def test_escape_sequences_of_a_teacher_do_not_reach_the_terminal(lectern, teacher):
    teacher.model.model_id = "\x1b[31mred"
    teacher.model.device = "cpu\x1b]0;title\x07"
    teacher.stats.runs[0].run_id = "\x1b[2Jgone[bold]"
    with serving(teacher) as address:
        shown = lectern("teacher", "status", address)
    assert "\x1b" not in shown.out and "\x07" not in shown.out
    assert "?[2Jgone[bold]" in shown.out


def test_an_absent_teacher_and_unusable_files_are_reported(lectern, tmp_path):
    away = lectern("teacher", "status", NOBODY, "--timeout-seconds", "1", "--json")
    assert (away.code, away.out) == (7, "")
    (tmp_path / "empty").write_text("")
    for file, says in (("empty", "is empty"), ("missing", "cannot read --token-file")):
        refused = lectern("teacher", "status", "--token-file", tmp_path / file)
        assert refused.code == 2 and says in refused.err and refused.err.count("\n") == 1


def test_a_real_teacher_is_shown_only_to_clients_with_its_token(lectern, tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server", "127.0.0.1")
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    options = ("--engine", "fixture", "--vocab-size", "97", "--token-file", str(token_file))
    tls = ("--tls-cert", str(certificate), "--tls-key", str(key))
    with teacher_process(tmp_path, *options, *tls) as teacher:
        ask = ("teacher", "status", teacher.address, "--tls-ca", authority.path, "--json")
        assert lectern(*ask, "--token-file", token_file).json["model"] == "fixture-97"
        assert lectern(*ask).code == 5
