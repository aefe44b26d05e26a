"""The table of tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("run_id", sa.Text),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("asked", sa.JSON, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("by", sa.Text),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("wanted", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("message", sa.Text),
        sa.Column("revision", sa.Integer, nullable=False, unique=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("restarts", sa.Integer, nullable=False),
        sa.Column("resume_at", sa.Float),
        sa.Column("slots", sa.JSON(none_as_null=True)),
        sa.Column("threads", sa.Integer),
        sa.Column("launched_at", sa.Float),
        sa.Column("pid", sa.Integer),
        sa.Column("boot_id", sa.Text),
        sa.Column("start_ticks", sa.Integer),
        sa.Column("stop_sent_at", sa.Float),
        sa.Column("active_since", sa.Float),
        sa.Column("active_seconds", sa.Float, nullable=False),
        sa.Column("status", sa.JSON(none_as_null=True)),
        sa.Column("queue_position", sa.Integer),
        sa.Column("waits_for", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_tasks_run_id", "tasks", ["run_id"])
    op.create_index("ix_tasks_state", "tasks", ["state"])
