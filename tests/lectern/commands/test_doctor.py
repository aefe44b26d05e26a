import os
import socket
from importlib.metadata import version

import grpc
import pytest

from lectern.client import Client, DiskStatus
from lectern.commands import doctor
from lectern.local.torch_probe import TorchFacts, probe_torch
from lectern_common.checks.check import Check, Outcome
from lectern_common.errors import NotFound, Unauthenticated
from lectern_common.roots import Roots
from lectern_common.teacher.secrets import SecretFiles
from tests.support.certificates import Authority
from tests.support.no_locks import refuse_locks
from tests.support.training.wire_teacher import Serving, WireTeacher


@pytest.fixture
def torch_is(monkeypatch):
    """Returns a function that sets what is found out about torch and the NVIDIA driver."""

    def pretend(facts: TorchFacts, driver: bool = False) -> None:
        monkeypatch.setattr("lectern.local.torch_probe.probe_torch", lambda: facts)
        monkeypatch.setattr(doctor, "has_nvidia_driver", lambda: driver)

    pretend(TorchFacts("2.13", None, (), 2))
    return pretend


def findings(home, teacher=None) -> dict[str, Check]:
    return {finding.subject: finding for finding in doctor.examine(Roots.of_home(home), teacher)}


def test_every_check_is_made(tmp_path, torch_is):
    assert list(findings(tmp_path)) == [
        "python",
        "torch",
        "gpu",
        "data root",
        "models root",
        "runs root",
        "secrets root",
        "cache root",
        "backups root",
        "disk",
        "open files",
        "control plane",
        "teacher",
        "docker",
    ]


def test_checking_creates_nothing(tmp_path, torch_is):
    findings(tmp_path / "home")

    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("facts", "driver", "outcome"),
    [
        (TorchFacts("2.13", "12.8", ("cuda:0 H200, 139 GiB",), 2), True, "pass"),
        (TorchFacts("2.13", None, (), 2), False, "warn"),
        (TorchFacts("2.13", None, (), 2), True, "fail"),
        (TorchFacts("2.13", "12.8", (), 2), True, "fail"),
    ],
)
def test_a_gpu_that_torch_does_not_see_fails_the_check(tmp_path, torch_is, facts, driver, outcome):
    torch_is(facts, driver)

    assert findings(tmp_path)["gpu"].outcome == outcome


def test_without_torch_the_control_plane_can_still_run(tmp_path, torch_is):
    torch_is(TorchFacts(problem="No module named 'torch'"))

    found = findings(tmp_path)

    assert found["torch"].outcome == "warn"
    assert "gpu" not in found


def test_unusable_folders_fail_with_advice(tmp_path, torch_is):
    (tmp_path / "data").write_text("a file")
    (tmp_path / "secrets").mkdir(mode=0o755)

    found = findings(tmp_path)

    assert found["data root"].outcome == "fail"
    assert "LECTERN_DATA_ROOT" in found["data root"].advice
    assert found["secrets root"].outcome == "warn"
    assert found["secrets root"].advice == f"chmod 700 {tmp_path}/secrets"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable_fails(tmp_path, torch_is):
    (tmp_path / "runs").mkdir(mode=0o500)

    assert findings(tmp_path)["runs root"].outcome == "fail"


def test_a_named_teacher_must_answer(tmp_path, torch_is):
    found = findings(tmp_path, teacher="127.0.0.1:1")

    assert found["teacher"].outcome == "fail"
    assert "127.0.0.1:1" in found["teacher"].message


def test_every_replica_of_a_teacher_is_asked_over_mutual_tls(lectern, tmp_path, torch_is):
    secrets = Roots.of_home(tmp_path).secrets
    authority = Authority(secrets)
    certificate, key = authority.sign("server", "127.0.0.1")
    authority.sign("me")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], authority.path.read_bytes(), True
    )
    files = {"ca": "authority.pem", "cert": "me.pem", "key": "me.key"}
    options = [word for name, file in files.items() for word in (f"--teacher-tls-{name}", file)]
    with Serving(WireTeacher(), credentials) as one, Serving(WireTeacher(), credentials) as two:
        both = f"{one.address},{two.address}"
        ended = lectern("doctor", "--home", tmp_path, "--teacher", both, *options, "--json")
        found = {entry["subject"]: entry for entry in ended.json["findings"]}["teacher"]
        assert (found["outcome"], found["message"]) == (
            "pass",
            f"wire on cpu at {one.address}, {two.address}",
        )
        two.down()
        ended = lectern("doctor", "--home", tmp_path, "--teacher", both, *options, "--json")
        found = {entry["subject"]: entry for entry in ended.json["findings"]}["teacher"]
        assert found["outcome"] == "warn" and two.address in found["message"]
    assert lectern("doctor", "--home", tmp_path, *options).code == 2  # no teacher named


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (SecretFiles("none"), "cannot read none"),
        (SecretFiles(tls_ca_file="none"), "teacher.tls_ca_file: none under the secrets root"),
        (SecretFiles(tls_cert_file="none"), "together"),
    ],
)
def test_unusable_secrets_fail(tmp_path, torch_is, files, says):
    found = doctor._teacher("127.0.0.1:1", Roots.of_home(tmp_path), files)
    assert found.outcome == "fail" and says in found.message
    assert doctor._teacher("nowhere", Roots.of_home(tmp_path), SecretFiles()).outcome == "fail"


def test_a_process_that_holds_a_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = doctor._control_plane(
            f"127.0.0.1:{taken.getsockname()[1]}", Roots.of_home(tmp_path)
        )

    assert found.outcome == "warn"
    assert f"pid {os.getpid()}" in found.message


def test_a_failed_check_exits_with_1_and_json_agrees_with_the_table(lectern, tmp_path, torch_is):
    assert lectern("doctor", "--home", tmp_path, "--json").json["ok"] is True

    torch_is(TorchFacts("2.13", None, (), 2), driver=True)
    ended = lectern("doctor", "--home", tmp_path, "--json")
    assert ended.code == 1
    assert ended.json["ok"] is False
    assert {entry["subject"]: entry["outcome"] for entry in ended.json["findings"]}["gpu"] == "fail"
    table = lectern("doctor", "--home", tmp_path)
    assert table.code == 1
    assert "TORCH_INDEX" in table.out


def test_torch_is_probed_in_another_process():
    facts = probe_torch()

    assert facts.version is not None
    assert facts.threads >= 1
    assert facts.problem is None


def test_a_torch_import_that_takes_too_long_is_reported():
    assert probe_torch(timeout_seconds=0.001).problem == "importing torch took over 0.001 s"


def test_a_root_without_file_locks_fails_with_a_way_out(tmp_path, torch_is, monkeypatch):
    for name in ("data", "runs"):
        (tmp_path / name).mkdir()
    refuse_locks(monkeypatch)

    found = findings(tmp_path)

    for name in ("data root", "runs root"):
        assert found[name].outcome == "fail" and "LECTERN_LOCKS" in found[name].message


def test_the_warning_of_this_homes_control_plane_about_its_disk_is_told(tmp_path, monkeypatch):
    sentence = "the disk of the runs fills: 3 GB free"
    roots = Roots.of_home(tmp_path)
    asked = []

    def disk(client: Client) -> DiskStatus:
        asked.append(client._transport.http.headers["authorization"])
        return DiskStatus(10, 3, 1, False, sentence)

    monkeypatch.setattr(Client, "disk", disk)
    assert list(doctor._disk_of_runs("127.0.0.1:8080", roots)) == []  # it has never run here
    roots.secrets.mkdir()
    (roots.secrets / "control-plane").write_text("its-token")
    [found] = doctor._disk_of_runs("127.0.0.1:8080", roots)
    assert (found.outcome, found.message, asked) == (Outcome.WARN, sentence, ["Bearer its-token"])

    def refused(_: Client) -> DiskStatus:
        raise Unauthenticated("the token is wrong")

    monkeypatch.setattr(Client, "disk", refused)
    assert list(doctor._disk_of_runs("127.0.0.1:8080", roots)) == []


@pytest.mark.parametrize(
    ("text", "outcome", "words"),
    [
        (
            "https://hooks.example.com/T0KEN\na-secret-that-signs",
            "pass",
            "hooks.example.com, signed",
        ),
        ("http://127.0.0.1:9/T0KEN", "pass", "http://127.0.0.1:9, unsigned"),
        ("http://hooks.example.com/T0KEN", "warn", "unsigned"),
        ("T0KEN", "fail", "not an http or https URL"),
        (None, "fail", "No such file"),
    ],
)
def test_the_webhook_file_is_checked_if_it_is_named(tmp_path, torch_is, text, outcome, words):
    (tmp_path / "secrets").mkdir(mode=0o700)
    if text is not None:
        (tmp_path / "secrets" / "hook").write_text(text)
    found = {
        check.subject: check
        for check in doctor.examine(Roots.of_home(tmp_path), webhook_file="hook")
    }["alert webhook"]
    assert found.outcome == outcome
    assert words in found.message and "T0KEN" not in found.message


class PlaneThatSays:
    """A stand-in for lectern.Client whose control plane has a given version."""

    def __init__(self, url, *, token, timeout_seconds):
        self.url = url

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def is_ready(self):
        return True


@pytest.mark.parametrize(
    ("answer", "outcome", "words"),
    [
        (version("lectern"), "pass", f"version {version('lectern')}"),
        ("0.0.9", "warn", "version 0.0.9, but this is"),
        (NotFound("nothing at /version"), "warn", "version an earlier release, but this is"),
        (Unauthenticated("wrong token"), "pass", "its version is unknown: wrong token"),
    ],
)
def test_the_release_of_a_running_control_plane_is_compared(
    tmp_path, monkeypatch, answer, outcome, words
):
    class Plane(PlaneThatSays):
        def version(self):
            if isinstance(answer, Exception):
                raise answer
            return {"version": answer}

    monkeypatch.setattr("lectern.client.Client", Plane)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found = doctor._control_plane(address, Roots.of_home(tmp_path))
    assert (found.outcome, words in found.message) == (outcome, True)
