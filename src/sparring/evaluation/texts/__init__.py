"""Evaluation of text models: the same statistics, store, report and verification, over texts instead of tensors."""
