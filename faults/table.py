"""The table of all rows of `make faults`, in order."""

from faults.control.rows import CONTROL_ROWS
from faults.launchers.rows import LAUNCHER_ROWS
from faults.record.rows import RECORD_ROWS
from faults.rollouts.rows import ROLLOUT_ROWS
from faults.row import Row
from faults.teacher import access, floods, health, input, outages, queueing, scoring
from faults.trainer import (
    bad_rows,
    damage,
    data_workers,
    divergence,
    killing,
    records,
    several_ranks,
    specs,
    stops,
    vocabularies,
)

_ALL = [
    Row(
        "S1",
        "trainers killed at any instant",
        "a checkpoint saves and restores the optimizer's moments",
        killing.killed_trainers,
    ),
    Row(
        "S2",
        "trainers killed in the middle of a save",
        "a checkpoint appears by rename once it is fully on disk",
        killing.killed_in_saves,
    ),
    Row("S3", "damaged checkpoints", "the manifest's hashes are verified", damage.damaged),
    Row(
        "S4",
        "a disk that fills up",
        "a full disk is told apart from other errors",
        damage.full_disk,
    ),
    Row("S5", "SIGTERM and SIGINT, once and twice", "a signal requests a stop", stops.stopped),
    Row(
        "S6",
        "a spec changed before a resume",
        "the spec is compared with the checkpoint's, field by field",
        specs.changed_specs,
    ),
    Row(
        "S7",
        "tokenizers and vocabularies that differ",
        "token-to-id maps are compared, id by id",
        vocabularies.vocabularies,
    ),
    Row(
        "S8",
        "a loss or gradient that is not finite",
        "such a step is skipped",
        divergence.not_finite,
    ),
    Row("S9", "broken rows of data", "the limit on rows left out", bad_rows.bad_rows),
    Row(
        "S10",
        "a resume on a different number of ranks",
        "a step's counts are summed over all ranks",
        several_ranks.other_ranks,
    ),
    Row(
        "S11",
        "a rank dies, then the supervisor",
        "if a rank dies, all ranks end and are restarted",
        several_ranks.lost_ranks,
    ),
    Row(
        "S12",
        "the clock jumps back",
        "durations come from a monotonic clock",
        records.clock_jumps,
    ),
    Row(
        "S13",
        "data workers die; data is truncated under a trainer",
        "a dead worker's piece is done again",
        data_workers.data_is_lost,
    ),
    Row(
        "S14",
        "metrics that are slow to write",
        "metrics wait in their own queue",
        records.slow_telemetry,
    ),
    Row(
        "T1",
        "the teacher is killed during calls and is back within seconds",
        "the trainer retries within the outage budget",
        outages.killed,
    ),
    Row(
        "T2",
        "the teacher is gone for longer than the outage budget",
        "a run that gives up on its teacher saves a checkpoint",
        outages.gone,
    ),
    Row("T3", "the teacher hangs", "every call has a deadline", outages.hanging),
    Row(
        "T4",
        "a different model at the teacher's address",
        "fingerprints are compared",
        outages.another_model,
    ),
    Row(
        "T22",
        "200 ms of latency, 1 MB/s, resets and stalls",
        "the trainer repeats the whole request",
        outages.bad_network,
    ),
    Row(
        "T5",
        "64 clients against a queue of 16",
        "the queue is bounded",
        queueing.full_queue,
    ),
    Row("T6", "one run floods the queue", "deficit round robin over runs", queueing.flooding_run),
    Row(
        "T7",
        "clients in the queue cancel or time out",
        "requests that nobody waits for are dropped",
        queueing.gone_from_the_queue,
    ),
    Row(
        "T8",
        "clients killed in the middle of a reply",
        "a call frees its place however it ends",
        queueing.killed_while_reading,
    ),
    Row("T9", "invalid fields", "every field is checked before computing", input.bad_fields),
    Row(
        "T10",
        "a reply over the limit",
        "the size of a reply is checked before it is computed",
        input.reply_too_large,
    ),
    Row(
        "T11",
        "random bytes, broken protobuf, a message of 1 GiB",
        "the message size is limited",
        input.random_bytes,
    ),
    Row(
        "T12",
        "connections, pings and calls by the thousand; slow readers",
        "nothing more is computed for clients that do not read",
        floods.floods,
    ),
    Row(
        "T13",
        "health under full load",
        "health is answered off the model's thread",
        health.health_under_load,
    ),
    Row(
        "T14",
        "loading and draining",
        "health says NOT_SERVING while calls are refused",
        health.readiness,
    ),
    Row("T15", "SIGTERM with calls in flight", "calls in flight are drained", health.drain),
    Row(
        "T16",
        "out of memory in a batch",
        "a batch that does not fit is split in halves",
        scoring.out_of_memory,
    ),
    Row("T17", "the device breaks", "a lost device ends the process", health.lost_device),
    Row("T18", "NaN or infinity from the model", "every value is checked", scoring.not_finite),
    Row(
        "T20",
        "no token, a wrong one, or one in the wrong place",
        "tokens are compared",
        access.tokens,
    ),
    Row(
        "T21",
        "an address beyond loopback without authentication",
        "authentication is required there",
        access.beyond_loopback,
    ),
    Row(
        "T19",
        "the same sequences in other batches, of other positions, in other requests",
        "independent mode computes only in ways that give equal results",
        scoring.other_company,
    ),
]
_SIDES = "SORCTL"  # trainers, rollouts, records, control planes, teachers, launchers
ROWS = {
    row.id: row
    for row in sorted(
        [*_ALL, *ROLLOUT_ROWS, *RECORD_ROWS, *CONTROL_ROWS, *LAUNCHER_ROWS],
        key=lambda row: (_SIDES.index(row.id[0]), int(row.id[1:])),
    )
}
