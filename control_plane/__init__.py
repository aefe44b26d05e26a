"""Process 3: starts, watches and stops runs; serves a REST API and a live page."""
