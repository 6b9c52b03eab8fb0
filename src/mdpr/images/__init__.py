"""Pictures: the one door by which every image is decoded, and the loading of batches."""
