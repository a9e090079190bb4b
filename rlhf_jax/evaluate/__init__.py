"""Evaluation: of policies by gold score, reward score and retained skills; of reward models by accuracy and calibration."""
