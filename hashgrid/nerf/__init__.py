"""Neural radiance fields: data, model, training, reports."""
