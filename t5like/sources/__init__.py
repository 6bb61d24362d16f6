"""Where text comes from: files, parquet, TFDS, the standard library's own source."""
