"""The loss and its gradients: chunked, by divergence, and the float64 reference."""
