"""Reads the inputs: files, rows and hub datasets; finds and hashes every document."""
