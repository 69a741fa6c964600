"""Sweeps: many short trainings, the good ones continued (successive halving, 1603.06560), the best one trained anew."""
