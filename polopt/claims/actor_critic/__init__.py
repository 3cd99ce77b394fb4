"""Claims of the family actor_critic."""
