"""Rays, cameras and boxes."""
