"""Which requests are admitted, computed together, cached and charged."""
