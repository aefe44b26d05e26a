"""The rows of records, in order."""

from faults.record import damage, filling, killing
from faults.row import Row

RECORD_ROWS = [
    Row(
        "R1",
        "recorders killed at any instant",
        "what a killed recorder left half written is cut off",
        killing.killed_recorders,
    ),
    Row(
        "R2",
        "the disk of a record fills up",
        "a full disk is told apart from other errors",
        filling.full_disk,
    ),
    Row(
        "R3", "a flipped bit in a record", "rows are compared with their checksums", damage.flipped
    ),
    Row(
        "R4",
        "the record of another teacher",
        "the teacher of a record is compared with that of the run",
        damage.of_another,
    ),
    Row(
        "R5",
        "a record that is cut short",
        "sizes are compared with the manifest",
        damage.cut_short,
    ),
    Row(
        "R6",
        "the teacher of a recording is gone",
        "a recorder asks again within the outage budget",
        killing.teacher_gone,
    ),
    Row(
        "R7",
        "runs killed that keep what they receive",
        "what is kept is on the disk before a checkpoint",
        killing.killed_runs,
    ),
]
