"""What tests of several modules share: inputs of the ops, their results in plain PyTorch, and error budgets."""
