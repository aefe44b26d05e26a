"""runs.stop_at: a stop asked for at the next checkpoint; runs.forked_from: where a fork began."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("stop_at", sa.Text))
    op.add_column("runs", sa.Column("forked_from", sa.JSON))
