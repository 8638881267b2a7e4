"""At which learning rates each injection trains."""
