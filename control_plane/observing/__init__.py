"""What tells of the control plane elsewhere: the alert webhook, and Prometheus metrics."""
