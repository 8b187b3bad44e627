"""Losses, schedules, optimiser, state, step and loop of pretraining."""
