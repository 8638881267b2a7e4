"""Trained models at work: loading them, with what is known of them."""

from isoloop.trainer.quality.trained_model import TrainedModel, load_trained
