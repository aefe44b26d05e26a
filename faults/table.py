"""The table: every row that `make faults` knows, in order."""

from faults import access, floods, health, input, outages, queueing, scoring
from faults.row import Row

_ALL = [
    Row(
        "T1",
        "the teacher is killed in the middle of calls, and is back in seconds",
        "the outage budget, in which the trainer asks again",
        outages.killed,
    ),
    Row(
        "T2",
        "the teacher is gone for longer than the outage budget",
        "the checkpoint of a run that ends for its teacher's sake",
        outages.gone,
    ),
    Row("T3", "the teacher hangs", "the deadline of every call", outages.hanging),
    Row(
        "T4",
        "another model on the teacher's address",
        "fingerprints are compared",
        outages.another_model,
    ),
    Row(
        "T22",
        "200 ms of latency, 1 MB/s, resets and stalls",
        "the trainer asks again, whole",
        outages.bad_network,
    ),
    Row(
        "T5",
        "64 clients against a queue of 16",
        "the bound on requests in the queue",
        queueing.full_queue,
    ),
    Row("T6", "one run floods the queue", "deficit round robin over runs", queueing.flooding_run),
    Row(
        "T7",
        "a client cancels, or its deadline passes, in the queue",
        "what nobody waits for is dropped",
        queueing.gone_from_the_queue,
    ),
    Row(
        "T8",
        "clients killed in the middle of a reply",
        "a place is given back whichever way its call ends",
        queueing.killed_while_reading,
    ),
    Row("T9", "fields that are wrong", "every field is checked before an engine", input.bad_fields),
    Row(
        "T10",
        "a reply over the limit",
        "the size of a reply is known, and checked, before it is computed",
        input.reply_too_large,
    ),
    Row(
        "T11",
        "random bytes, broken protobuf, a message of 1 GiB",
        "the largest message that is taken",
        input.random_bytes,
    ),
    Row(
        "T12",
        "connections, pings and calls by the thousand; slow readers",
        "nothing more is computed for who does not read",
        floods.floods,
    ),
    Row(
        "T13",
        "health under full load",
        "health is answered beside the model's thread",
        health.health_under_load,
    ),
    Row(
        "T14",
        "loading and draining",
        "health says NOT_SERVING while calls are not taken",
        health.readiness,
    ),
    Row("T15", "SIGTERM with calls in flight", "the drain", health.drain),
    Row(
        "T16",
        "out of memory in a batch",
        "a batch without room is computed in halves",
        scoring.out_of_memory,
    ),
    Row("T17", "the device breaks", "a lost device ends the process", health.lost_device),
    Row("T18", "NaN or infinity from the model", "every value is looked at", scoring.not_finite),
    Row(
        "T20",
        "no token, a wrong one, or one in the wrong place",
        "the comparison of tokens",
        access.tokens,
    ),
    Row(
        "T21",
        "an address beyond loopback, and no way to know who calls",
        "callers must be known there",
        access.beyond_loopback,
    ),
    Row(
        "T19",
        "the same request in other company",
        "independent mode computes together only what comes out equal",
        scoring.other_company,
    ),
]
ROWS = {row.id: row for row in sorted(_ALL, key=lambda row: int(row.id[1:]))}
