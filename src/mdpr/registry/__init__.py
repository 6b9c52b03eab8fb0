"""The MLflow model registry: versions and aliases, the servable model, the gate."""
