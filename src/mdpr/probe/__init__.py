"""The frozen CLIP before tuning: zero-shot answers, confusions, its hidden prior over classes."""
