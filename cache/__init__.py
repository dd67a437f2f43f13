"""Who owns which KV page, which prefix is where, and the tensors behind it."""
