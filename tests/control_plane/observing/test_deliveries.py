"""Alerts reach the receiver at least once, whatever it does, and never as a flood."""

import threading
import time
from contextlib import contextmanager

import pytest

from control_plane.observing.deliveries import (
    FIRST_DELAY_SECONDS,
    GIVE_UP_SECONDS,
    LONGEST_DELAY_SECONDS,
    MAX_AT_ONCE,
    MESSAGES,
    Deliveries,
    body,
    delivery_of,
)
from control_plane.observing.receiver import send
from control_plane.runs.alerts import MAX_ALERTS, Alert, AlertKind, Alerts
from control_plane.runs.store import Store
from lectern_common.errors import Conflict, Overloaded
from lectern_common.run.webhook import Receiver
from tests.control_plane.conftest import wait_for
from tests.support.fakes import FakeClock
from tests.support.webhook import webhook

SECRET = "a-secret-of-these-tests"


class Desk:
    """An outbox and what delivers it, over one database; `restart` ends and begins it anew."""

    def __init__(self, folder, url: str) -> None:
        self.path = folder / "test.sqlite3"
        self.url = url
        self.clock = FakeClock()
        self.timeout = 5.0
        self.open()

    def open(self) -> None:
        self.store = Store.open(self.path)
        self.alerts = Alerts(self.store, self.clock, delivers=True)
        receiver = Receiver(self.url, SECRET)
        self.deliveries = Deliveries(
            self.alerts,
            receiver,
            lambda to, name, data: send(to, name, data, self.timeout),
            self.clock,
            self.clock,
        )
        self.alerts.added = self.deliveries.wake
        self.deliveries.start()

    def close(self) -> None:
        self.deliveries.close()
        self.store.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def add(self, count: int = 1, kind: AlertKind = AlertKind.FAILED) -> list[int]:
        with self.store.writing() as connection:
            for number in range(count):
                self.alerts.add(connection, kind, f"number {number}")
        self.alerts.added()
        return [alert.seq for alert in reversed(self.alerts.newest(0, count))]

    def later(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.deliveries.wake()

    def of(self, seq: int) -> Alert:
        return next(alert for alert in self.alerts.newest() if alert.seq == seq)

    def tried(self, seq: int, attempts: int) -> Alert:
        """Returns the alert once so many attempts are recorded."""
        wait_for(lambda: self.of(seq).attempts >= attempts)
        assert self.of(seq).attempts == attempts
        return self.of(seq)

    def arrived(self, *seqs: int) -> None:
        wait_for(lambda: all(self.of(seq).delivered_at is not None for seq in seqs))


@contextmanager
def desk_at(folder, receiver):
    desk = Desk(folder, receiver.url)
    try:
        yield desk
    finally:
        desk.close()


@pytest.fixture
def receiver():
    with webhook("/services/T0KEN-of-the-path") as receiver:
        yield receiver


@pytest.fixture
def desk(tmp_path, receiver):
    with desk_at(tmp_path, receiver) as desk:
        yield desk


def ids(receiver):
    """Returns the `seq` of which alert each message is."""
    return [got.headers["lectern-delivery"].partition("-")[0] for got in receiver.got]


def test_an_alert_of_a_restored_database_is_not_taken_for_an_earlier_one():
    same_seq = alert(seq=7, at=5.5), alert(seq=7, at=90_000.25)
    assert [delivery_of(one) for one in same_seq] == ["7-5.500", "7-90000.250"]


def test_an_alert_arrives_once(desk, receiver):
    [seq] = desk.add()
    desk.arrived(seq)
    alert = desk.of(seq)
    assert (alert.attempts, alert.next_try_at, alert.last_error) == (1, None, None)
    desk.later(100_000)
    desk.arrived(*desk.add())
    assert ids(receiver) == [str(seq), str(seq + 1)]
    assert receiver.got[0].json["message"] == "number 0"


def test_attempts_are_repeated_at_doubling_delays_with_the_same_id(desk, receiver):
    receiver.usual = 503
    [seq] = desk.add()
    delay = FIRST_DELAY_SECONDS
    for attempts in range(1, 13):
        alert = desk.tried(seq, attempts)
        assert alert.next_try_at == desk.clock.now + delay
        assert alert.last_error.endswith("answered 503 Service Unavailable")
        desk.later(delay - 1)  # too early
        assert desk.of(seq).attempts == attempts
        desk.later(1)
        delay = min(2 * delay, LONGEST_DELAY_SECONDS)
    desk.tried(seq, 13)
    receiver.usual = 200
    desk.later(delay)
    desk.arrived(seq)
    assert ids(receiver) == [str(seq)] * 14
    assert len({got.body for got in receiver.got}) == 1


def test_after_a_day_it_is_given_up_and_says_so(desk, receiver):
    receiver.usual = 500
    [seq] = desk.add()
    attempts = 1
    while desk.tried(seq, attempts).next_try_at is not None:
        desk.later(LONGEST_DELAY_SECONDS)
        attempts += 1
    alert = desk.of(seq)
    assert desk.clock.now - alert.at > GIVE_UP_SECONDS
    assert "given up after a day" in (alert.last_error or "")
    assert desk.alerts.undelivered() == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
def test_what_a_receiver_refuses_is_not_repeated(desk, receiver, status):
    receiver.behaviours = [status]
    (refused,) = desk.add()
    alert = desk.tried(refused, 1)
    assert (alert.next_try_at, alert.delivered_at) == (None, None)
    assert "not tried again" in (alert.last_error or "")
    desk.arrived(*desk.add())  # others go on
    assert len(receiver.got) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_kept_to_for_every_alert(desk, receiver, status):
    def later(handler):
        handler.send_response(status)
        handler.send_header("Retry-After", "7200")
        handler.end_headers()

    receiver.behaviours = [later]
    [first] = desk.add()
    assert desk.tried(first, 1).next_try_at == desk.clock.now + 7200
    [second] = desk.add()
    desk.later(7199)
    assert len(receiver.got) == 1
    desk.later(1)
    desk.arrived(first, second)


def test_a_receiver_that_hangs_on_one_alert_does_not_hold_up_the_others(desk, receiver):
    receiver.behaviours = [receiver.hangs]
    [hanging] = desk.add()
    wait_for(lambda: receiver.got)
    others = desk.add(MAX_AT_ONCE + 1)
    desk.arrived(*others)
    assert desk.of(hanging).attempts == 0


def test_a_receiver_that_always_hangs_is_left_at_the_deadline(desk, receiver):
    desk.timeout = 0.2
    receiver.usual = receiver.hangs
    seqs = desk.add(6)
    for seq in seqs:
        assert "did not answer" in (desk.tried(seq, 1).last_error or "")


def test_a_restart_goes_on_with_what_is_pending(desk, receiver):
    receiver.usual = 500
    seqs = desk.add(3)
    for seq in seqs:
        desk.tried(seq, 1)
    receiver.usual = 200
    desk.restart()
    assert len(receiver.got) == 3  # not before their time
    desk.later(FIRST_DELAY_SECONDS)
    desk.arrived(*seqs)
    assert sorted(ids(receiver)) == sorted([str(seq) for seq in seqs] * 2)


def test_a_restart_in_the_middle_of_an_attempt_sends_it_again(desk, receiver):
    receiver.behaviours = [receiver.hangs]
    [seq] = desk.add()
    wait_for(lambda: receiver.got)
    begun = time.monotonic()
    desk.restart()
    desk.arrived(seq)
    assert ids(receiver) == [str(seq)] * 2
    assert desk.of(seq).attempts == 1
    assert time.monotonic() - begun < 30  # a bound against hanging until the deadline of all tests


def test_an_alert_that_is_older_than_a_day_at_the_start_is_tried_once(desk, receiver):
    receiver.usual = 500
    [seq] = desk.add()
    desk.tried(seq, 1)
    desk.close()
    desk.clock.advance(3 * GIVE_UP_SECONDS)
    desk.open()
    assert desk.tried(seq, 2).next_try_at is None


def test_a_clock_that_goes_back_puts_nothing_off(desk, receiver):
    receiver.usual = 500
    [seq] = desk.add()
    desk.tried(seq, 1)
    desk.close()
    desk.clock.now -= 3 * GIVE_UP_SECONDS
    receiver.usual = 200
    desk.open()
    desk.arrived(seq)


def test_a_burst_is_folded_into_one_that_says_how_many(desk, receiver):
    seqs = desk.add(40, AlertKind.FINISHED) + desk.add(2)
    desk.arrived(*seqs)
    assert len(receiver.got) <= MESSAGES
    several = next(got.json for got in receiver.got if got.json["kind"] == "several")
    assert several["run_id"] is None
    assert " alerts (" in several["message"] and "finished" in several["message"]
    counted = [got.json["message"].split(" ")[0] for got in receiver.got]
    assert sum(int(word) if word.isdigit() else 1 for word in counted) == 42


def test_no_more_than_so_many_messages_a_minute(desk, receiver):
    seqs = []
    for _ in range(MESSAGES):
        seqs += desk.add()
        desk.arrived(seqs[-1])
    held = [seq for _ in range(MESSAGES + 1) for seq in desk.add()]
    desk.later(59)
    assert len(receiver.got) == MESSAGES
    desk.later(1)
    desk.arrived(*held)
    assert len(receiver.got) == MESSAGES + 1
    assert receiver.got[-1].json["message"] == "11 alerts (11 failed); the newest: number 0"
    assert ids(receiver)[-1] == str(held[-1])


def test_a_folded_message_stays_the_same_when_it_is_repeated(desk, receiver):
    receiver.usual = 500
    seqs = desk.add(MESSAGES + 1)
    leader = seqs[-1]
    desk.tried(leader, 1)
    assert all(desk.of(seq).attempts == 1 for seq in seqs)
    desk.restart()
    receiver.usual = 200
    [further] = desk.add()
    desk.arrived(further)
    desk.later(FIRST_DELAY_SECONDS)
    desk.arrived(*seqs)
    first, _, again = receiver.got
    assert first.body == again.body
    assert first.headers["lectern-delivery"] == again.headers["lectern-delivery"]
    assert ids(receiver)[0] == str(leader)


def test_alerts_to_a_dead_receiver_do_not_pile_up(desk, receiver):
    receiver.usual = 500
    seqs = []
    for _ in range(2 * MESSAGES):
        seqs += desk.add()
        desk.tried(seqs[-1], 1)
        desk.later(61)
    wait_for(lambda: len(desk.alerts.pending()) <= MESSAGES + 1)
    receiver.usual = 200
    before = len(receiver.got)
    for _ in range(70):
        desk.later(61)
        if desk.alerts.undelivered() == 0:
            break
        time.sleep(0.02)
    desk.arrived(*seqs)
    assert len(receiver.got) - before <= MESSAGES + 1


def test_the_outbox_is_bounded(desk):
    desk.add(MAX_ALERTS + 50)
    assert len(desk.alerts.newest(0, 5000)) == MAX_ALERTS


def test_what_has_arrived_is_not_sent_again_if_it_cannot_be_recorded(desk, receiver, monkeypatch):
    failing = threading.Event()
    delivered = desk.alerts.delivered

    def full(seq, attempts):
        if not failing.is_set():
            raise OSError("disk full")
        delivered(seq, attempts)

    monkeypatch.setattr(desk.alerts, "delivered", full)
    [seq] = desk.add()
    wait_for(lambda: receiver.got)
    for _ in range(5):
        desk.later(100)
    failing.set()
    desk.later(1)
    desk.arrived(seq)
    assert len(receiver.got) == 1


def test_no_error_of_the_sender_stops_the_others(tmp_path):
    sent = []

    async def breaks_once(receiver, delivery, data):
        sent.append(delivery)
        if len(sent) == 1:
            raise RuntimeError("a bug")
        return await send(receiver, delivery, data)

    with webhook() as receiver, desk_at(tmp_path, receiver) as desk:
        desk.deliveries._send = breaks_once
        [first] = desk.add()
        wait_for(lambda: sent)
        [second] = desk.add()
        desk.arrived(second)
        desk.later(FIRST_DELAY_SECONDS)
        desk.arrived(first)


# ---- tests of the webhook ------------------------------------------------------------------------


def test_a_test_alert_tells_what_the_receiver_answered(desk, receiver):
    answer = desk.deliveries.test().result(30)
    assert (answer.delivered, answer.status) == (True, 204)
    got = receiver.got[0]
    assert got.json["kind"] == "test"
    assert got.headers["lectern-delivery"].startswith("test-")
    receiver.usual = 403
    answer = desk.deliveries.test().result(30)
    assert (answer.delivered, answer.status) == (False, 403)
    assert desk.alerts.newest() == []  # no test is an alert


def test_one_test_at_a_time(desk, receiver):
    receiver.behaviours = [receiver.hangs]
    hanging = desk.deliveries.test()
    wait_for(lambda: receiver.got)
    with pytest.raises(Overloaded):
        desk.deliveries.test()
    receiver.ended.set()
    hanging.result(30)
    assert desk.deliveries.test().result(30).delivered


def test_without_a_receiver_nothing_is_pending_and_a_test_is_refused(tmp_path):
    store = Store.open(tmp_path / "test.sqlite3")
    alerts = Alerts(store, FakeClock())
    deliveries = Deliveries(alerts, None)
    deliveries.start()
    with store.writing() as connection:
        alerts.add(connection, AlertKind.DISK, "full")
    assert (alerts.undelivered(), alerts.pending()) == (0, [])
    with pytest.raises(Conflict, match="--alert-webhook-file"):
        deliveries.test()
    deliveries.close()
    store.close()


# ---- the body ------------------------------------------------------------------------------------


def alert(**said):
    usual = {"run_id": "coder-7t2k9q", "name": "coder", "state": "failed", "step": 3}
    usual |= {"kind": "failed", "reason": "crash_loop", "message": "it failed"}
    return Alert(**{"seq": 7, "revision": 9, "at": 5.5, **usual, **said})


def test_the_body_has_every_field():
    assert body(alert(), "http://127.0.0.1:8080/") == {
        "version": 1,
        "kind": "failed",
        "run_id": "coder-7t2k9q",
        "name": "coder",
        "state": "failed",
        "reason": "crash_loop",
        "message": "it failed",
        "step": 3,
        "at": 5.5,
        "url": "http://127.0.0.1:8080/#/runs/coder-7t2k9q",
        "text": "Lectern: it failed\nhttp://127.0.0.1:8080/#/runs/coder-7t2k9q",
        "content": "Lectern: it failed\nhttp://127.0.0.1:8080/#/runs/coder-7t2k9q",
        "allowed_mentions": {"parse": []},
    }
    assert body(alert(run_id=None), "http://h/")["url"] == "http://h/"
    assert body(alert(), None)["url"] is None


def test_what_a_run_wrote_calls_nobody_and_is_not_too_long():
    found = body(alert(message="<!channel> & <@U1>" + "x" * 4000), None)
    assert "<" not in found["text"] and "&lt;!channel&gt; &amp;" in found["text"]
    assert len(found["content"]) < 2000
    assert len(found["message"]) > 4000
