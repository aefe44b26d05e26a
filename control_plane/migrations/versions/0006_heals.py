"""runs.heals: how often a run has gone on by itself after an end that heals."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("heals", sa.Integer, nullable=False, server_default="0"))
