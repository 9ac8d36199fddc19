"""The `kubectl mlmodel` plugin."""
