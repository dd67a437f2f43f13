"""The version of Rootlet, as the package, its metadata, the command line and jobs name it."""

__version__ = "0.2.0"
