"""Text to tokens on disk, once."""
