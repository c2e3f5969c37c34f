"""Machines: what `machines.yaml` declares, which task this process is, and how to launch."""
