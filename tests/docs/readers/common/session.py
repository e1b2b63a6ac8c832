"""What the Python of every page may use without saying where it comes from."""

import workerd

client = workerd.Client()
