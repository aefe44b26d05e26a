"""The commands of `lectern`, one file each."""
