"""Process 1: hosts the teacher model behind gRPC."""
