"""Fitting a photo: the smallest application of a hash grid."""
