"""What people and monitors see of a server: Prometheus metrics, GPU use, the startup banner."""
