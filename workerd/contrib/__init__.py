"""What frameworks need of workerd, each with an extra of its own: `pip install workerd[django]`."""
