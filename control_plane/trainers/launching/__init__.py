"""Backends that start trainers: processes of this machine, or jobs of a site's scheduler."""
