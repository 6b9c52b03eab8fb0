"""The stages as Kubeflow components. What a stage does is in `mdpr.stages`, one function for all drivers."""
