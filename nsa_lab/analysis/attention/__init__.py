"""What the attention of a trained model does: gates, sinks, shared choices, and the budget that it spends."""
