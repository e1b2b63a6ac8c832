"""The toolbox of processes: loop, channel, fork, signals, limits. It knows no job."""
