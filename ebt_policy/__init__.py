"""Energy-based transformers as robot policies, which predict by descending a learned energy."""

__version__ = "0.1.0"
