"""Energy-based transformers as robot policies: learn a scalar energy, predict by descending it."""

__version__ = "0.1.0"
