"""The Kubeflow pipeline: the nine stages as one graph, and the ways to run it."""
