"""Product similarity you can trust: from raw product data to a fine-tuned, honestly measured BERT."""

__version__ = "0.1.0"
