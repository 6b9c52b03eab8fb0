"""After deployment: the log of a model's answers, and estimates from it about the new images."""
