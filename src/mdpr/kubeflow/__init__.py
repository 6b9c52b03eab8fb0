"""The code behind the Kubeflow components: parameters as text, views for the UI, fan-out."""
