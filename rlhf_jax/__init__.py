"""The InstructGPT pipeline in JAX: SFT, Bradley-Terry reward model, PPO-ptx."""
