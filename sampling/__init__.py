"""What turns logits into tokens: parameters, seeds, penalties, filters, draws and log-probabilities."""
