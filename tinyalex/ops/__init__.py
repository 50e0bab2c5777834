"""Forward and backward of every operation, one family a file: arrays in, arrays out."""
