"""Process 3: starts, watches and stops runs; REST, live page."""
