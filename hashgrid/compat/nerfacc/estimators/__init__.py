"""Where along rays samples are worth taking."""
