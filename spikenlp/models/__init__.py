"""Spiking models, one folder each, as transformers models."""
