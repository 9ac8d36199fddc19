"""Child manifests: one pure function a kind."""
