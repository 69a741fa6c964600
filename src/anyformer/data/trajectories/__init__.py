"""Episodes of states, actions and rewards."""

MAX_EPISODES = 10_000  # that are played at once
MAX_RETURN = 1e12
