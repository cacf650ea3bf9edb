"""Similarity in many dimensions, fused, calibrated, explained."""
