"""Who calls in these rows: honest, hostile, many, far away."""
