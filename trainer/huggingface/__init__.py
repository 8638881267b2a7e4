"""Trained models as folders that Transformers loads."""

from isoloop.trainer.huggingface.export import export_model
