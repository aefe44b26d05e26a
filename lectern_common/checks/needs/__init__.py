"""What a run will need: tokens, bytes over the wire, hours, disk and memory."""
