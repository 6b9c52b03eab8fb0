"""MLflow tracking: the store, the run that `tune` opens, the results that `evaluate` adds, and where both come from."""
