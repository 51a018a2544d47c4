"""Loaders of posed photographs, a module for each format; see :mod:`hashgrid.data.scene`."""
