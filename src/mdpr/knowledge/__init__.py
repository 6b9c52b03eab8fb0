"""What is known about the classes before tuning: the frozen model's own bias, and the sentences written for them."""
