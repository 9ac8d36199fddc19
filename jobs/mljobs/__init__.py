"""The pipeline's jobs: train, audit, optimize, package."""
