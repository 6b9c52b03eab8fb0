"""How the embedded default was made: the Fashion-MNIST files, mdpr-tiny's weights, and nothing else."""
