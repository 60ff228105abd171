"""Installing the plugins' executables and the systemd units on a node."""
