"""What reward models are worth on files of preferences: scores as RewardBench 2 has them, and what length explains."""
