"""The federated client: data, local training and evaluation of the users that a node hosts."""
