"""Forward and backward of every operation on arrays, one family per file."""
