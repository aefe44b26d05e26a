"""runs.slots, a list of devices, in the place of runs.slot; runs.threads."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("slots", sa.JSON))
    op.add_column("runs", sa.Column("threads", sa.Integer))
    op.execute("UPDATE runs SET slots = json_array(slot) WHERE slot IS NOT NULL")
    op.drop_column("runs", "slot")
