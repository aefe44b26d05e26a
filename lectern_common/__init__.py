"""What two or more processes share, without torch: errors, run spec, run folder, wire arrays."""
