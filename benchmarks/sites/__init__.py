"""Real deployments of several sites, under what links do to them; without it: deployment.py."""
