"""Stands in for the Habana bridge's packages, on a simulated device."""
