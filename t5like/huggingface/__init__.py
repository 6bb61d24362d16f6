"""Models, tokenizers and folders of Hugging Face, read and written."""
