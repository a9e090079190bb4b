"""What a model is worth: policies by gold, score and skills; reward models by calibration."""
