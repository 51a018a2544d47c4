"""Neural radiance fields: training, reports."""
