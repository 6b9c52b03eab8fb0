"""The data room: sources, the long-tailed cut, images, loading for torch, expectations of usable data."""
