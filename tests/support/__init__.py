"""What several tests stand on: fakes, small models, servers as processes, certificates."""
