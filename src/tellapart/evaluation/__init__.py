"""What probabilities are worth: functions of labels and probabilities, numpy only."""
