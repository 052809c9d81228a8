"""Secure aggregation: sums of sites' vectors of which nobody sees the parts. It knows no Flower."""
