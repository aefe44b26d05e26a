"""Columns of runs for facts that change with time alone: place in the queue, silence, stalls."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("queue_position", sa.Integer))
    op.add_column("runs", sa.Column("waits_for", sa.Text))
    op.add_column("runs", sa.Column("stale_since", sa.Float))
    op.add_column("runs", sa.Column("stalled_since", sa.Float))
