"""Step time and memory of a config on a TPU slice, from the compiler's own schedule, without a TPU."""
