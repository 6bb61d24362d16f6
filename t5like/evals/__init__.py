"""Trained models are asked, zero-shot and few-shot."""
