"""What several processes share, without torch: errors, run spec, run folder, wire formats."""
