"""The same questions put to what a user would pick instead, each with its best settings that are safe."""
