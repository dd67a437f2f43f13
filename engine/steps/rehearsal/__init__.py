"""Steps of padding, run before there are requests: which kernels there are, and what memory steps take."""
