"""qconv: a plugin-based, quantizing model-format converter."""
