"""The rows of runs whose student writes, in order."""

from faults.rollouts import filling, killing, texts
from faults.row import Row

ROLLOUT_ROWS = [
    Row(
        "O1",
        "trainers killed while they write",
        "each text has random numbers of its own, of seed, step, row and sample",
        killing.killed_while_writing,
    ),
    Row(
        "O2",
        "trainers killed while they wait for the teacher's scores",
        "rollouts that are still to be learnt are in the checkpoint",
        killing.killed_while_scoring,
    ),
    Row(
        "O3",
        "trainers killed while they learn what they wrote",
        "a resume drops the lines of rollouts.jsonl that its steps write again",
        killing.killed_while_learning,
    ),
    Row(
        "O4",
        "the teacher is killed while it scores rollouts",
        "the trainer asks again within the outage budget",
        killing.teacher_killed,
    ),
    Row(
        "O5",
        "the disk fills up while rollouts are written",
        "a full disk is told apart from other errors",
        filling.full_disk,
    ),
    Row(
        "O6",
        "a student that never ends a text",
        "a text is cut at max_new_tokens",
        texts.endless,
    ),
    Row(
        "O7",
        "a student that only repeats itself",
        "the metrics measure repetition",
        texts.repeating,
    ),
    Row(
        "O8",
        "logits that are not finite while the student writes",
        "no token is drawn from such logits",
        texts.not_finite,
    ),
]
