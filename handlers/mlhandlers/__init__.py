"""TorchServe handlers."""
