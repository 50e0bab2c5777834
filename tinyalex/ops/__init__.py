"""Forward and backward of every operation, one family per file: arrays in, arrays out."""
