"""Command line `tinyalex`, one module per command."""
