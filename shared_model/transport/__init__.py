"""How arrays travel: many as one in a deployment, and bytes of a peer read with care."""
