"""Runs, model registry, gate and serving: everything that talks to MLflow."""
