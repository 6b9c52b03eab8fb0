"""After deployment: the log of a served model's answers, and what it says about the images that come in."""
