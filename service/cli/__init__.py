"""The command line: talks to a running service, and starts one."""
