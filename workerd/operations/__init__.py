"""What people and programs may do, for every way in: command line, HTTP, client."""
