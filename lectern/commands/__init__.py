"""The commands of `lectern`, a file each."""
