"""What the frozen CLIP says before tuning: zero-shot answers, confusions, its hidden prior over classes."""
