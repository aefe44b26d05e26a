"""The tables of the first release: runs, history, idempotency_keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("wanted", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("message", sa.Text),
        sa.Column("revision", sa.Integer, nullable=False, unique=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("restarts", sa.Integer, nullable=False),
        sa.Column("restart_checkpoint", sa.Integer),
        sa.Column("resume_at", sa.Float),
        sa.Column("slot", sa.Text),
        sa.Column("launched_at", sa.Float),
        sa.Column("pid", sa.Integer),
        sa.Column("process_create_time", sa.Float),
        sa.Column("stop_sent_at", sa.Float),
        sa.Column("active_since", sa.Float),
        sa.Column("active_seconds", sa.Float, nullable=False),
        sa.Column("status", sa.JSON),
    )
    op.create_index("ix_runs_state", "runs", ["state"])
    op.create_table(
        "history",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("wanted", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("message", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("history_by_run", "history", ["run_id", "seq"])
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("request_sha256", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
