"""t5like: pre-training of transformers in JAX, for TPU pods and for laptops."""
