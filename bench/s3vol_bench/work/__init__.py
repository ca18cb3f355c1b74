"""What is timed, session by session. A step prepares, runs its timed part under the clock, and says what must be true
of the bucket right after; what it prepares and checks costs nothing in the figure."""
