"""A step on the device: its inputs, the forward pass, the draw, and the copy back."""
