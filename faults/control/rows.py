"""The rows of the control plane, in order."""

from faults.control import (
    databases,
    drifting,
    fuzzing,
    hostile,
    idling,
    killing,
    requests,
    showing,
    sizes,
    strangers,
)
from faults.row import Row

CONTROL_ROWS = [
    Row(
        "C1",
        "control planes killed while runs train",
        "living trainers are adopted",
        killing.adopted,
    ),
    Row(
        "C2",
        "control planes and their trainers killed",
        "interrupted runs are queued again",
        killing.both_killed,
    ),
    Row(
        "C3",
        "control planes killed while they start a trainer",
        "a trainer is looked for before one is started",
        killing.one_trainer_each,
    ),
    Row(
        "C4",
        "reused pids, zombies, processes of others",
        "a process is known by more than its pid",
        strangers.not_ours,
    ),
    Row(
        "C5",
        "one Idempotency-Key, 64 times at once",
        "the key of a request is kept with its run",
        requests.same_key,
    ),
    Row(
        "C6",
        "stop, resume and delete in any order",
        "a resume is refused unless the run rests",
        requests.any_order,
    ),
    Row(
        "C7",
        "trainers that ignore SIGTERM, with descendants",
        "the whole session of a trainer is killed",
        strangers.deaf_trainers,
    ),
    Row(
        "C8",
        "a database that is locked, full, read-only or fails",
        "errors of the database are answered 503",
        databases.ailing,
    ),
    Row(
        "C9",
        "a damaged database at the start",
        "the database is checked before it is used",
        databases.damaged,
    ),
    Row(
        "C10",
        "migrations killed half-way",
        "a migration is one transaction",
        databases.half_migrated,
    ),
    Row(
        "C11",
        "1,000 runs, and one of a million metric lines",
        "the list reads only the runs of its page",
        sizes.many_runs,
    ),
    Row(
        "C12",
        "200 event streams, slow ones and lost ones among them",
        "a stream continues after the last event's id",
        sizes.many_streams,
    ),
    Row(
        "C13",
        "fuzzed calls over every operation",
        "every route but health needs the token",
        fuzzing.fuzzed,
    ),
    Row(
        "C14",
        "bodies and headers that are too large, deep or wrong",
        "the size of a body is limited",
        hostile.large_and_deep,
    ),
    Row(
        "C15",
        "path tricks in every string field",
        "paths must lie under their root",
        hostile.path_tricks,
    ),
    Row(
        "C16",
        "foreign Host and Origin headers, and forms",
        "writes from another site's page are refused",
        hostile.other_sites,
    ),
    Row(
        "C17",
        "a log with escapes, HTML, a line of 100 MB, bad UTF-8",
        "lines of a log are made inert",
        showing.hostile_log,
    ),
    Row(
        "C18",
        "secrets of the plane and of the teacher",
        "trainers inherit only what they need",
        showing.secrets,
    ),
    Row(
        "C19",
        "ports taken, folders closed, no GPU, no disk",
        "a start that cannot work is told in one sentence",
        showing.starts,
    ),
    Row(
        "C20",
        "no process can be looked at for a while",
        "what cannot be seen is not taken for gone",
        drifting.blind,
    ),
    Row(
        "C21",
        "trainers of an older and of a later release",
        "older versions of a status are read",
        drifting.other_releases,
    ),
    Row(
        "C22",
        "create, stop, resume and delete, over and over",
        "a trainer's log is closed once it has started",
        drifting.soak,
    ),
    Row(
        "C23",
        "the clock steps an hour, either way",
        "processes are known without the wall clock",
        drifting.stepped_clock,
    ),
    Row(
        "C24",
        "trainers that write wrong types, NaN and 50 MB",
        "a status is checked before it is believed",
        drifting.wrong_statuses,
    ),
    Row(
        "C25",
        "hearts that beat while no step is made",
        "a run without progress is called stalled",
        idling.stalled,
    ),
    Row(
        "C27",
        "1,100 idle connections, more than descriptors",
        "the number of connections is limited",
        idling.idle_connections,
    ),
]
