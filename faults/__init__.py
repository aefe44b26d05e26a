"""What must survive what, tried on real processes over real sockets: `make faults`."""
